// Products with norms, and the gated MLP, against double precision.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tests/support/device_data.h"
#include "tests/support/devices.h"
#include "tests/support/equations.h"

namespace gsa {
namespace {

using test::DeviceArray;
using test::Doubles;
using test::Random;
using test::StepData;
using test::Weights;

// Tokens of a step. On a GPU each range has kernels of its own, of which the last is cuBLASLt's.
struct Tokens {
  int64_t least, most;
};
constexpr Tokens kFew{1, 4}, kSome{5, 16}, kMany{17, 200};

class BackendProducts : public test::DeviceTypeTest {
 protected:
  void norm_project_agrees(const Tokens& tokens);
  void rows_of_another_type_stand_behind(const Tokens& tokens);
  void gated_mlp_agrees(const Tokens& tokens);
};
INSTANTIATE_TEST_SUITE_P(Devices, BackendProducts, testing::ValuesIn(test::matrix_types()),
                         test::device_type_name);

using CpuProducts = testing::TestWithParam<DType>;
INSTANTIATE_TEST_SUITE_P(Types, CpuProducts,
                         testing::Values(DType::kF32, DType::kF16, DType::kBF16, DType::kQ8,
                                         DType::kQ4),
                         [](const auto& type) { return std::string(dtype_name(type.param)); });

constexpr int64_t kMostRows = kMany.most;

std::vector<int64_t> within(const Tokens& tokens, std::vector<int64_t> rows) {
  std::erase_if(rows, [&](int64_t n) { return n < tokens.least || n > tokens.most; });
  return rows;
}

Doubles row_of(const std::vector<float>& values, int64_t row, int64_t columns) {
  return Doubles(values.begin() + row * columns, values.begin() + (row + 1) * columns);
}

// Rows of a product and what it is made of.
struct Product {
  int64_t columns, out;
  bool norm_weight, accumulate;
  std::vector<int64_t> rows;
};

std::vector<float> matrix(Random& random, int64_t rows, int64_t columns) {
  return random.normal(rows * columns, 1.5 / std::sqrt(static_cast<double>(columns)));
}

void reserve_for(Backend& backend, int64_t columns, int64_t F) {
  backend.reserve({.tokens = kMostRows, .segments = kMostRows, .logit_rows = kMostRows},
                  {.H = 1, .G = 1, .K = columns, .V = columns, .M = 8}, columns, F);
}

// A step is decode or a prompt: the product is the same.
std::vector<StepData> steps_of(int64_t rows) {
  std::vector<StepData> steps = {StepData::prompt(rows)};
  if (rows > 1) steps.push_back(StepData::decode(rows));
  return steps;
}

class NormProjectCase {
 public:
  NormProjectCase(Backend& backend, DType dtype, const Product& product)
      : backend_(backend),
        p_(product),
        random_(static_cast<uint32_t>(p_.columns * 31 + p_.out)),
        weight_(backend, dtype, {p_.out, p_.columns}, matrix(random_, p_.out, p_.columns)),
        norm_(backend, DType::kF32, {p_.columns}, random_.uniform(p_.columns, 0.5, 1.5)),
        x_(backend, kMostRows, p_.columns),
        y_(backend, kMostRows, p_.out) {
    reserve_for(backend, p_.columns, p_.out);
  }

  double worst_error(const StepData& data) {
    const int64_t rows = static_cast<int64_t>(data.tokens.size());
    std::vector<float> x = random_.normal(rows * p_.columns);
    // Rows of very different size: the norm must be each row's own.
    for (int64_t i = 0; i < p_.columns; ++i) x[i] *= 1e-3f;
    const std::vector<float> before = random_.normal(rows * p_.out);
    x_.set(x);
    y_.set(before);
    project(data);
    EXPECT_EQ(x_.get(rows), x) << "the input changed";
    return test::worst_row_error(y_.get(rows), expected(x, before, rows), p_.out);
  }

  // The product of two rows, in the first of which one column may be that.
  std::vector<float> with(float value) {
    Random random(7);
    std::vector<float> x = random.normal(2 * p_.columns);
    x[p_.columns / 2] = value;
    x_.set(x);
    project(StepData::prompt(2));
    return y_.get(2);
  }

  // The product of kMostRows rows, always the same ones, `chunk` rows a step.
  std::vector<float> in_chunks(int64_t chunk) {
    Random random(5);
    const std::vector<float> x = random.normal(kMostRows * p_.columns);
    const std::vector<float> before = random.normal(kMostRows * p_.out);
    const auto part = [](const std::vector<float>& all, int64_t first, int64_t n, int64_t columns) {
      return std::vector<float>(all.begin() + first * columns, all.begin() + (first + n) * columns);
    };
    std::vector<float> result;
    for (int64_t first = 0; first < kMostRows; first += chunk) {
      const int64_t rows = std::min(chunk, kMostRows - first);
      x_.set(part(x, first, rows, p_.columns));
      y_.set(part(before, first, rows, p_.out));
      project(StepData::prompt(rows));
      const std::vector<float> y = y_.get(rows);
      result.insert(result.end(), y.begin(), y.end());
    }
    return result;
  }

 private:
  static constexpr double kEps = 1e-6;

  void project(const StepData& data) {
    const int64_t rows = static_cast<int64_t>(data.tokens.size());
    test::run_step(backend_, data.step(), [&] {
      backend_.norm_project({.x = x_.view(rows),
                             .norm_weight = p_.norm_weight ? norm_.device : TensorView(),
                             .eps = kEps,
                             .weight = weight_.device,
                             .accumulate = p_.accumulate,
                             .y = y_.view(rows)});
    });
  }

  Doubles expected(const std::vector<float>& x, const std::vector<float>& before,
                   int64_t rows) const {
    Doubles all;
    const Doubles weight = test::widen(weight_.host);
    for (int64_t t = 0; t < rows; ++t) {
      const Doubles normed = test::rms_norm(row_of(x, t, p_.columns),
                                            p_.norm_weight ? norm_.host : TensorView(), kEps);
      const Doubles y = test::product(weight, normed);
      for (int64_t i = 0; i < p_.out; ++i) {
        all.push_back(y[i] + (p_.accumulate ? before[t * p_.out + i] : 0));
      }
    }
    return all;
  }

  Backend& backend_;
  Product p_;
  Random random_;
  Weights weight_, norm_;
  DeviceArray x_, y_;
};

void BackendProducts::norm_project_agrees(const Tokens& tokens) {
  const std::vector<int64_t> all = {1, 2, 3, 7, 8, 9, 16, 17, 33, 64, 70, 200};
  const std::vector<int64_t> few = {1, 4, 8, 9, 16, 17};
  for (const Product& p :
       {Product{40, 33, true, false, all}, Product{100, 75, false, true, all},
        Product{256, 100, true, true, all}, Product{256, 520, false, false, few},
        Product{2048, 130, true, false, few}, Product{2048, 64, true, true, {1, 16, 64}},
        Product{1344, 1500, true, true, {5, 13}}, Product{128, 36004, false, true, {8, 13}}}) {
    const auto backend = this->backend();
    NormProjectCase product(*backend, dtype(), p);
    for (int64_t rows : within(tokens, p.rows)) {
      for (const StepData& data : steps_of(rows)) {
        EXPECT_LT(product.worst_error(data),
                  test::tolerance(device(), dtype(), test::product_form(dtype(), rows, p.columns)))
            << rows << " rows in " << data.segments.size() << " segments, " << p.columns << " -> "
            << p.out << (p.norm_weight ? ", normed" : "") << (p.accumulate ? ", added" : "");
      }
    }
  }
}

TEST_P(BackendProducts, NormProjectOfAFewTokensAgreesWithTheEquation) { norm_project_agrees(kFew); }
TEST_P(BackendProducts, NormProjectOfSomeTokensAgreesWithTheEquation) {
  norm_project_agrees(kSome);
}
TEST_P(BackendProducts, NormProjectOfManyTokensAgreesWithTheEquation) {
  norm_project_agrees(kMany);
}

// Columns [begin, end) of rows of `columns` numbers.
template <typename T>
std::vector<T> columns_of(const std::vector<T>& values, int64_t columns, int64_t begin,
                          int64_t end) {
  std::vector<T> found;
  for (size_t row = 0; row < values.size(); row += columns) {
    found.insert(found.end(), values.begin() + row + begin, values.begin() + row + end);
  }
  return found;
}

void BackendProducts::rows_of_another_type_stand_behind(const Tokens& tokens) {
  struct Parts {
    DType fine;
    int64_t columns, first, behind;
  };
  for (const Parts& p : {Parts{DType::kF32, 256, 33, 20}, Parts{DType::kF16, 256, 72, 20},
                         Parts{DType::kBF16, 256, 33, 20}, Parts{DType::kBF16, 1024, 72, 40}}) {
    const auto backend = this->backend();
    const int64_t D = p.columns, out = p.first + p.behind;
    Random random(static_cast<uint32_t>(out));
    const Weights weight(*backend, dtype(), {p.first, D}, matrix(random, p.first, D));
    const Weights apart(*backend, p.fine, {p.behind, D}, matrix(random, p.behind, D));
    DeviceArray x(*backend, kMostRows, D), y(*backend, kMostRows, out);
    reserve_for(*backend, D, D);
    for (int64_t rows : within(tokens, {1, 3, 9, 16, 40})) {
      const std::vector<float> values = random.normal(rows * D);
      x.set(values);
      const StepData data = StepData::prompt(rows);
      test::run_step(*backend, data.step(), [&] {
        backend->norm_project({.x = x.view(rows),
                               .norm_weight = {},
                               .eps = 1e-6,
                               .weight = weight.device,
                               .apart = apart.device,
                               .y = y.view(rows)});
      });
      Doubles expected;
      const Doubles wide[] = {test::widen(weight.host), test::widen(apart.host)};
      for (int64_t t = 0; t < rows; ++t) {
        const Doubles normed = test::rms_norm(row_of(values, t, D), {}, 1e-6);
        for (const Doubles& w : wide) {
          const Doubles part = test::product(w, normed);
          expected.insert(expected.end(), part.begin(), part.end());
        }
      }
      const std::vector<float> found = y.get(rows);
      const auto error = [&](int64_t begin, int64_t end) {
        return test::worst_row_error(columns_of(found, out, begin, end),
                                     columns_of(expected, out, begin, end), end - begin);
      };
      const auto bound = [&](DType type) {
        return test::tolerance(device(), type, test::product_form(type, rows, D));
      };
      EXPECT_LT(error(0, p.first), bound(dtype())) << rows << " rows of " << D << " columns";
      EXPECT_LT(error(p.first, out), bound(p.fine))
          << rows << " rows of " << D << " columns, " << dtype_name(p.fine);
    }
  }
}

TEST_P(BackendProducts, NormProjectPutsRowsOfAnotherTypeBehindTheOthersForAFewTokens) {
  rows_of_another_type_stand_behind(kFew);
}
TEST_P(BackendProducts, NormProjectPutsRowsOfAnotherTypeBehindTheOthersForSomeTokens) {
  rows_of_another_type_stand_behind(kSome);
}
TEST_P(BackendProducts, NormProjectPutsRowsOfAnotherTypeBehindTheOthersForManyTokens) {
  rows_of_another_type_stand_behind(kMany);
}

TEST_P(BackendProducts, NormProjectKeepsWhatIsNotANumberToItsToken) {
  const Product product{300, 100, true, false, {2}};
  const auto backend = this->backend();
  NormProjectCase products(*backend, dtype(), product);
  const std::vector<float> usual = products.with(1);
  const std::vector<float> broken = products.with(std::numeric_limits<float>::quiet_NaN());
  for (int64_t i = 0; i < product.out; ++i) {
    ASSERT_TRUE(std::isnan(broken[i])) << i;
    ASSERT_EQ(broken[product.out + i], usual[product.out + i]) << i;
  }
}

TEST_P(BackendProducts, NormProjectOfARowOfZerosIsZero) {
  const auto backend = this->backend();
  const int64_t D = 100, out = 40;
  Random random(8);
  const Weights weight(*backend, dtype(), {out, D}, matrix(random, out, D));
  reserve_for(*backend, D, out);
  for (int64_t rows : {1, 20}) {
    const DeviceArray x(*backend, rows, D);
    DeviceArray y(*backend, rows, out, random.normal(rows * out));
    const StepData data = StepData::prompt(rows);
    test::run_step(*backend, data.step(), [&] {
      backend->norm_project(
          {.x = x.view(), .norm_weight = {}, .eps = 1e-6, .weight = weight.device, .y = y.view()});
    });
    EXPECT_EQ(y.get(), std::vector<float>(rows * out, 0.0f));
  }
}

// Rows beyond a block of tokens, columns beyond a piece of a panel, and numbers that no tile
// divides.
TEST_P(CpuProducts, GiveARowTheSameBitsAloneAndAmongOthers) {
  for (const Product& p : {Product{40, 33, true, false, {}}, Product{1000, 75, true, true, {}},
                           Product{2048, 40, true, false, {}}, Product{6400, 9, true, true, {}}}) {
    const auto backend = make_cpu_backend(2);
    NormProjectCase product(*backend, GetParam(), p);
    const std::vector<float> together = product.in_chunks(kMostRows);
    for (int64_t chunk : {1, 5, 13, 97}) {
      EXPECT_EQ(product.in_chunks(chunk), together)
          << "in chunks of " << chunk << ", " << p.columns << " -> " << p.out;
    }
  }
}

class GatedMlpCase {
 public:
  GatedMlpCase(Backend& backend, DType dtype, int64_t D, int64_t F, bool norm_weight)
      : backend_(backend),
        D_(D),
        F_(F),
        random_(static_cast<uint32_t>(D * 17 + F)),
        gate_up_(backend, dtype, {2 * F, D}, matrix(random_, 2 * F, D)),
        down_(backend, dtype, {D, F}, matrix(random_, D, F)),
        norm_(backend, DType::kF32, {D}, random_.uniform(D, 0.5, 1.5)),
        x_(backend, kMostRows, D),
        hidden_(backend, kMostRows, F),
        norm_weight_(norm_weight) {
    reserve_for(backend, D, F);
  }

  // Against the equation with operands stored as the device does: three roundings in a row to 16
  // bits can differ by 1% from the plain equation in a row of few columns, which would hide
  // mistakes.
  double worst_error(const StepData& data, const std::string& device) {
    const int64_t rows = static_cast<int64_t>(data.tokens.size());
    const std::vector<float> x = random_.normal(rows * D_, 0.5);
    x_.set(x);
    test::run_step(backend_, data.step(), [&] {
      backend_.gated_mlp({.norm_weight = norm_weight_ ? norm_.device : TensorView(),
                          .eps = 1e-6,
                          .gate_up = gate_up_.device,
                          .down = down_.device,
                          .hidden = hidden_.view(rows),
                          .x = x_.view(rows)});
    });
    Doubles expected;
    const int64_t columns = std::gcd(D_, F_);
    const DType dtype = gate_up_.host.dtype;
    const DType type = test::operand_type(device, dtype, rows, columns);
    const DType weights = test::weight_type(device, dtype, rows, columns);
    const Doubles gate_up = test::stored(weights, test::widen(gate_up_.host));
    const Doubles down = test::stored(weights, test::widen(down_.host));
    for (int64_t t = 0; t < rows; ++t) {
      const Doubles row = row_of(x, t, D_);
      const Doubles y = test::gated_mlp(
          gate_up, down, test::rms_norm(row, norm_weight_ ? norm_.host : TensorView(), 1e-6), type,
          test::between_type(device, dtype, rows, columns));
      for (int64_t i = 0; i < D_; ++i) expected.push_back(row[i] + y[i]);
    }
    return test::worst_row_error(x_.get(rows), expected, D_);
  }

 private:
  Backend& backend_;
  int64_t D_, F_;
  Random random_;
  Weights gate_up_, down_, norm_;
  DeviceArray x_, hidden_;
  bool norm_weight_;
};

void BackendProducts::gated_mlp_agrees(const Tokens& tokens) {
  struct Shape {
    int64_t D, F;
    bool norm_weight;
    std::vector<int64_t> rows;
  };
  for (const Shape& s :
       {Shape{40, 75, true, {1, 2, 3, 7, 8, 9, 16, 17, 33, 64, 70, 200}},
        Shape{100, 256, false, {1, 8, 9, 16, 17, 70}},
        Shape{256, 768, true, {1, 5, 8, 9, 16, 17, 64}},
        Shape{2048, 136, true, {1, 3, 5, 9, 16, 33}}, Shape{320, 1088, true, {5, 12, 16}}}) {
    const auto backend = this->backend();
    GatedMlpCase mlp(*backend, dtype(), s.D, s.F, s.norm_weight);
    for (int64_t rows : within(tokens, s.rows)) {
      for (const StepData& data : steps_of(rows)) {
        EXPECT_LT(mlp.worst_error(data, device()),
                  test::tolerance(device(), dtype(),
                                  test::product_form(dtype(), rows, std::gcd(s.D, s.F))))
            << rows << " rows in " << data.segments.size() << " segments, D " << s.D << ", F "
            << s.F;
      }
    }
  }
}

TEST_P(BackendProducts, GatedMlpOfAFewTokensAgreesWithTheEquation) { gated_mlp_agrees(kFew); }
TEST_P(BackendProducts, GatedMlpOfSomeTokensAgreesWithTheEquation) { gated_mlp_agrees(kSome); }
TEST_P(BackendProducts, GatedMlpOfManyTokensAgreesWithTheEquation) { gated_mlp_agrees(kMany); }

}  // namespace
}  // namespace gsa
