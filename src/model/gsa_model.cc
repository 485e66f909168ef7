#include "model/gsa_model.h"

#include <algorithm>
#include <cassert>

#include "kernels/error.h"

namespace gsa {
namespace {

// The attention output's norm does not follow norm_eps.
constexpr double kOutputNormEps = 1e-5;

constexpr TensorView LayerWeights::*kLayerTensors[] = {
    &LayerWeights::attn_norm, &LayerWeights::qkvf,        &LayerWeights::f,
    &LayerWeights::conv,      &LayerWeights::feature_map, &LayerWeights::g_norm,
    &LayerWeights::o_proj,    &LayerWeights::mlp_norm,    &LayerWeights::gate_up,
    &LayerWeights::down};

}  // namespace

void Batch::add(const StateHandle& state, std::span<const int32_t> ids, Logits logits) {
  assert(drawn_rows.empty());
  sequences.push_back({state.index(), static_cast<int32_t>(tokens.size()),
                       static_cast<int32_t>(ids.size()), logits});
  tokens.insert(tokens.end(), ids.begin(), ids.end());
}

void Batch::add_drawn(const StateHandle& state, int32_t row, Logits logits) {
  assert(drawn_rows.size() == tokens.size());
  sequences.push_back({state.index(), static_cast<int32_t>(tokens.size()), 1, logits});
  tokens.push_back(0);
  drawn_rows.push_back(row);
}

void Batch::clear() {
  tokens.clear();
  drawn_rows.clear();
  sequences.clear();
}

GsaModel::GsaModel(const GsaConfig& config, const ModelWeights& weights, Backend& backend,
                   const StepLimits& limits, const LoadProgress& progress)
    : config_(config), weights_(weights), backend_(backend), limits_(limits) {
  const bool tied = weights.lm_head.data == weights.embeddings.data;
  const int64_t total =
      weight_bytes() + (tied ? 0 : static_cast<int64_t>(weights.embeddings.bytes()));
  int64_t done = 0;
  const auto import = [&](TensorView& tensor) {
    if (!tensor) return;
    tensor = backend.import_weights(tensor);
    done += static_cast<int64_t>(tensor.bytes());
    if (progress) progress(done, total);
  };
  import(weights_.embeddings);
  for (LayerWeights& layer : weights_.layers) {
    for (TensorView LayerWeights::*tensor : kLayerTensors) import(layer.*tensor);
  }
  import(weights_.norm);
  if (tied) {
    weights_.lm_head = weights_.embeddings;
  } else {
    import(weights_.lm_head);
  }
  const auto floats = [&](int64_t rows, int64_t columns) {
    return backend.allocate(rows * columns * sizeof(float));
  };
  const GsaConfig& c = config_;
  x_ = floats(limits.tokens, c.hidden_size);
  qkvf_ = floats(limits.tokens, c.qkvf_rows());
  mixed_ = floats(limits.tokens, c.attention_width());
  hidden_ = floats(limits.tokens, c.intermediate_size);
  last_ = floats(limits.logit_rows, c.hidden_size);
  logits_ = floats(limits.logit_rows, c.vocab_size);
  backend.reserve(limits, c.mix_shape(), c.hidden_size, c.intermediate_size);
}

int64_t GsaModel::weight_bytes() const {
  int64_t bytes = 0;
  const auto add = [&](const TensorView& tensor) { bytes += tensor ? tensor.bytes() : 0; };
  for (const LayerWeights& layer : weights_.layers) {
    for (TensorView LayerWeights::*tensor : kLayerTensors) add(layer.*tensor);
  }
  add(weights_.norm);
  add(weights_.lm_head);
  return bytes;
}

TensorView GsaModel::view(const Buffer& buffer, int64_t rows, int64_t columns) const {
  assert(rows * columns * sizeof(float) <= buffer.bytes());
  return TensorView(buffer.data(), DType::kF32, {rows, columns});
}

void GsaModel::check(const Batch& batch) const {
  if (static_cast<int64_t>(batch.tokens.size()) > limits_.tokens ||
      static_cast<int64_t>(batch.sequences.size()) > limits_.segments) {
    throw Error("a step of {} tokens in {} sequences exceeds this model's limits of {} and {}",
                batch.tokens.size(), batch.sequences.size(), limits_.tokens, limits_.segments);
  }
  for (int32_t token : batch.tokens) {
    if (token < 0 || token >= config_.vocab_size) {
      throw Error("token id {} is outside the vocabulary of {}", token, config_.vocab_size);
    }
  }
}

void GsaModel::prepare(StatePool& states) {
  std::vector<StateHandle> handles;
  Batch batch;
  const int32_t token = 0;
  for (int64_t size : backend_.decode_sizes(std::min(limits_.segments, states.capacity()))) {
    while (static_cast<int64_t>(handles.size()) < size) {
      handles.push_back(*states.acquire());
      batch.add(handles.back(), {&token, 1}, Logits::kLast);
    }
    // A backend may execute a step the first time and record it the second.
    forward(batch, states);
    const SamplingParams params;
    const std::vector<SampleRow> rows(size, {.params = &params});
    std::vector<SampleResult> results(size);
    backend_.sample(forward(batch, states), rows, results);
  }
}

TensorView GsaModel::forward(const Batch& batch, StatePool& states) {
  check(batch);
  const GsaConfig& c = config_;
  const int64_t T = static_cast<int64_t>(batch.tokens.size());
  segments_.clear();
  logit_rows_.clear();
  for (const Batch::Sequence& s : batch.sequences) {
    if (s.count == 0) continue;
    segments_.push_back({s.state, s.first, s.count});
    const int32_t end = s.first + s.count;
    const int32_t begin = s.logits == Logits::kAll ? s.first : end - (s.logits == Logits::kLast);
    for (int32_t row = begin; row < end; ++row) logit_rows_.push_back(row);
  }
  const int64_t R = static_cast<int64_t>(logit_rows_.size());
  if (R > limits_.logit_rows) {
    throw Error("a step with {} rows of logits exceeds this model's limit of {}", R,
                limits_.logit_rows);
  }

  const TensorView logits = view(logits_, R, c.vocab_size);
  bool issue = backend_.begin_step({.tokens = batch.tokens,
                                    .segments = segments_,
                                    .logit_rows = logit_rows_,
                                    .drawn_rows = batch.drawn_rows,
                                    .model = this,
                                    .states = states.hk(0),
                                    .state_type = states.type()});
  do {
    if (issue) run(states, T, logits);
    issue = backend_.end_step();
  } while (issue);
  return logits;
}

void GsaModel::run(StatePool& states, int64_t T, const TensorView& logits) {
  const GsaConfig& c = config_;
  const TensorView x = view(x_, T, c.hidden_size);
  backend_.embed(weights_.embeddings, x);
  for (int64_t layer = 0; layer < c.num_layers; ++layer) run_layer(layer, states, T);
  if (logits.shape[0] == 0) return;
  const TensorView last = view(last_, logits.shape[0], c.hidden_size);
  backend_.gather_logit_rows(x, last);
  backend_.norm_project({.x = last,
                         .norm_weight = weights_.norm,
                         .eps = c.norm_eps,
                         .weight = weights_.lm_head,
                         .y = logits});
}

void GsaModel::run_layer(int64_t layer, StatePool& states, int64_t T) {
  const GsaConfig& c = config_;
  const LayerWeights& w = weights_.layers[layer];
  const TensorView x = view(x_, T, c.hidden_size);
  const TensorView qkvf = view(qkvf_, T, c.qkvf_rows());
  const TensorView mixed = view(mixed_, T, c.attention_width());
  backend_.norm_project({.x = x,
                         .norm_weight = w.attn_norm,
                         .eps = c.norm_eps,
                         .weight = w.qkvf,
                         .apart = w.f,
                         .y = qkvf});
  if (c.conv_size > 0) {
    backend_.convolve({.weight = w.conv, .qkvf = qkvf, .history = states.conv(layer)});
  }
  backend_.mix({.shape = c.mix_shape(),
                .feature_map = c.feature_map,
                .feature_weight = w.feature_map,
                .normalizer = c.gate_logit_normalizer,
                .qkvf = qkvf,
                .state_type = states.type(),
                .hk = states.hk(layer),
                .hv = states.hv(layer),
                .out = mixed});
  backend_.norm_project({.x = mixed,
                         .norm_weight = w.g_norm,
                         .eps = kOutputNormEps,
                         .weight = w.o_proj,
                         .accumulate = true,
                         .y = x});
  backend_.gated_mlp({.norm_weight = w.mlp_norm,
                      .eps = c.norm_eps,
                      .gate_up = w.gate_up,
                      .down = w.down,
                      .hidden = view(hidden_, T, c.intermediate_size),
                      .x = x});
}

}  // namespace gsa
