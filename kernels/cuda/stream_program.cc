#include "kernels/cuda/stream_program.h"

#include "kernels/cuda/stream_matrices.h"

namespace gsa::cuda {
namespace {

const float* floats(const TensorView& view) { return static_cast<const float*>(view.data); }

}  // namespace

StreamProgram::StreamProgram(const Launch& how, int64_t T, const int32_t* tokens,
                             const DecodeRow* rows)
    : how_(how) {
  step_.T = static_cast<int>(T);
  step_.tokens = tokens;
  step_.rows = rows;
}

const void* StreamProgram::matrix(const TensorView& weight, DType type) {
  if (weight.dtype != type) possible_ = false;
  return weight.data;
}

template <typename T, typename U>
void StreamProgram::agree(T& field, U value) {
  if (layers_.size() == 1) field = static_cast<T>(value);
  possible_ = possible_ && field == static_cast<T>(value);
}

void StreamProgram::embed(const TensorView& table) {
  expect(Next::kEmbed, Next::kQkvf);
  step_.embeddings = static_cast<const __nv_bfloat16*>(matrix(table, DType::kBF16));
  step_.D = static_cast<int>(table.shape[1]);
}

void StreamProgram::norm_project(const NormProject& args) {
  if (!possible_) return;
  if (layers_.empty()) step_.type = args.weight.dtype;
  possible_ = step_.type == DType::kBF16 || is_quantized(step_.type);
  const void* weight = matrix(args.weight, step_.type);
  const float* norm = floats(args.norm_weight);
  if (next_ == Next::kQkvf) {
    expect(Next::kQkvf, Next::kMix);
    StreamLayer& layer = layers_.emplace_back(StreamLayer{});
    layer.weight[kQkvf] = weight;
    layer.norm[kQkvf] = norm;
    if (is_quantized(step_.type)) layer.weight[kApart] = matrix(args.apart, DType::kBF16);
    agree(step_.eps, args.eps);
  } else if (next_ == Next::kOut) {
    expect(Next::kOut, Next::kMlp);
    layers_.back().weight[kOut] = weight;
    layers_.back().norm[kOut] = norm;
    agree(step_.output_eps, args.eps);
  } else {
    expect(Next::kHead, Next::kNothing);
    head_.weight[0] = weight;
    head_.norm[0] = norm;
    step_.N = static_cast<int>(args.weight.shape[0]);
    step_.logits = args.y.f32();
    possible_ = possible_ && step_.eps == static_cast<float>(args.eps);
  }
}

void StreamProgram::mix(const Mix& args) {
  expect(Next::kMix, Next::kOut);
  if (!possible_) return;
  if (args.state_type != DType::kF32) return other();
  layers_.back().hk = static_cast<float*>(args.hk);
  layers_.back().hv = static_cast<float*>(args.hv);
  agree(step_.H, args.shape.H);
  agree(step_.G, args.shape.G);
  agree(step_.K, args.shape.K);
  agree(step_.V, args.shape.V);
  agree(step_.M, args.shape.M);
  agree(step_.inverse_normalizer, 1 / args.normalizer);
  agree(step_.map, args.feature_map);
}

void StreamProgram::gated_mlp(const GatedMlp& args) {
  expect(Next::kMlp, Next::kQkvf);
  if (!possible_) return;
  layers_.back().norm[kGateUp] = floats(args.norm_weight);
  layers_.back().weight[kGateUp] = matrix(args.gate_up, step_.type);
  layers_.back().weight[kDown] = matrix(args.down, step_.type);
  agree(step_.F, args.hidden.shape[1]);
  possible_ = possible_ && step_.eps == static_cast<float>(args.eps);
}

void StreamProgram::gather_logit_rows() { expect(Next::kQkvf, Next::kHead); }

bool StreamProgram::finish() {
  possible_ = possible_ && next_ == Next::kNothing && !layers_.empty();
  if (!possible_) return false;
  step_.layer_count = static_cast<int>(layers_.size());
  if (!plan_stream(how_, step_)) return false;
  try {
    take_memory();
  } catch (const Error&) {
    return false;  // the kernels in a row need no more than they have
  }
  step_.epoch = 1;
  plan_ = *plan_stream(how_, step_);  // with the pointers
  describe_matrices();
  return true;
}

void StreamProgram::take_memory() {
  layers_.push_back(head_);
  device_layers_ = DeviceArray<StreamLayer>(layers_.size());
  GSA_CUDA_CHECK(cudaMemcpyAsync(device_layers_.get(), layers_.data(),
                                 layers_.size() * sizeof(StreamLayer), cudaMemcpyHostToDevice,
                                 how_.stream));
  step_.layers = device_layers_.get();
  matrices_ = DeviceArray<CUtensorMap>(layers_.size() * kLayerProducts * 2);
  step_.matrices = matrices_.get();
  const StreamBuffers sizes = stream_buffers(step_);
  const int64_t total = sizes.x + sizes.qkvf + sizes.scores + sizes.mixed + sizes.y + sizes.hidden;
  exchange_ = DeviceArray<float>(total);
  GSA_CUDA_CHECK(cudaMemsetAsync(exchange_.get(), 0, total * sizeof(float), how_.stream));
  float* at = exchange_.get();
  const auto take = [&at](int64_t count) {
    float* buffer = at;
    at += count;
    return buffer;
  };
  step_.x = take(sizes.x);
  step_.qkvf = take(sizes.qkvf);
  step_.scores = take(sizes.scores);
  step_.mixed = take(sizes.mixed);
  step_.y = take(sizes.y);
  step_.hidden = take(sizes.hidden);
}

void StreamProgram::describe_matrices() {
  std::vector<CUtensorMap> matrices(layers_.size() * kLayerProducts * 2);
  for (size_t i = 0; i < matrices.size() / 2; ++i) {
    const bool head = i / kLayerProducts + 1 == layers_.size();
    const int which = head ? static_cast<int>(kHead) : static_cast<int>(i % kLayerProducts);
    const void* weight = layers_[i / kLayerProducts].weight[i % kLayerProducts];
    if (weight == nullptr || (is_quantized(step_.type) && which != kApart)) continue;
    const StreamShare& share = plan_.shares[which];
    for (int rest = 0; rest < 2; ++rest) {
      matrices[i * 2 + rest] = stream_matrix(
          static_cast<const __nv_bfloat16*>(weight), int64_t{share.outputs} * (share.gated ? 2 : 1),
          share.cols, rest == 1 ? share.rest_rows : share.tile_rows, kPieceBlocks);
    }
  }
  GSA_CUDA_CHECK(cudaMemcpyAsync(matrices_.get(), matrices.data(),
                                 matrices.size() * sizeof(CUtensorMap), cudaMemcpyHostToDevice,
                                 how_.stream));
}

void StreamProgram::run() {
  run_stream(how_, step_, plan_);
  step_.epoch += step_.layer_count + 1;
}

}  // namespace gsa::cuda
