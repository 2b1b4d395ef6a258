#include "cpu/quadtree_stage.hpp"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "cpu/spans.hpp"
#include "cpu_module.hpp"

namespace py = pybind11;

namespace {

using pycodec::QuadtreeStage;

// noconvert: a silent copy of an output array would lose what is written to it.
template <class T>
using Array = py::array_t<T, py::array::c_style>;

QuadtreeStage make_stage(py::ssize_t height, py::ssize_t width, py::ssize_t channels,
                         int parity_xor) {
  constexpr py::ssize_t kMost = 1 << 20;
  if (height > kMost || width > kMost || channels > kMost || channels % 4 != 0) {
    throw std::invalid_argument("channels must be a multiple of 4, and no side above 2^20");
  }
  if (parity_xor < 0 || parity_xor > 3) throw std::invalid_argument("parity_xor must be 0..3");
  return {static_cast<int>(height), static_cast<int>(width), static_cast<int>(channels),
          parity_xor};
}

template <class T>
void check_shape(const Array<T>& array, const char* name, py::ssize_t height, py::ssize_t width,
                 py::ssize_t channels) {
  if (array.ndim() != 3 || array.shape(0) != height || array.shape(1) != width ||
      array.shape(2) != channels) {
    throw std::invalid_argument(std::string(name) + " must be [" + std::to_string(height) + ", " +
                                std::to_string(width) + ", " + std::to_string(channels) + "]");
  }
}

template <class T>
void check_size(const Array<T>& array, const char* name, py::ssize_t size) {
  if (array.ndim() != 1 || array.shape(0) != size) {
    throw std::invalid_argument(std::string(name) + " must have " + std::to_string(size) +
                                " items");
  }
}

py::tuple stage_parameters(const Array<std::int32_t>& head, int parity_xor,
                           const Array<std::int32_t>& log2_step, int log2_scale_min, int levels,
                           int threads) {
  if (head.ndim() != 3 || head.shape(2) % 2 != 0) {
    throw std::invalid_argument("head must be [height, width, 2 channels]");
  }
  if (levels < 1 || levels > 256) throw std::invalid_argument("levels must be 1..256");
  const auto stage = make_stage(head.shape(0), head.shape(1), head.shape(2) / 2, parity_xor);
  check_size(log2_step, "log2_step", stage.channels);
  const py::ssize_t shape[] = {stage.height, stage.width, stage.group_channels()};
  Array<std::int32_t> mean(shape);
  Array<std::uint8_t> index(shape);
  std::int32_t* mean_data = mean.mutable_data();
  std::uint8_t* index_data = index.mutable_data();
  {
    // Of the heads a quarter is read: the channels of the stage.
    const pycodec::SpanScope span("stage_parameters", [&] {
      return pycodec::SpanWork{head.nbytes() / 4 + mean.nbytes() + index.nbytes()};
    });
    py::gil_scoped_release unlocked;
    pycodec::stage_parameters(stage, head.data(), log2_step.data(), log2_scale_min, levels,
                              mean_data, index_data, threads);
  }
  return py::make_tuple(mean, index);
}

Array<std::int32_t> quantize_residuals(const Array<std::int32_t>& latents, int parity_xor,
                                       const Array<std::int32_t>& mean,
                                       const Array<std::uint8_t>& index,
                                       const Array<std::int32_t>& step,
                                       const Array<std::int32_t>& rounding, int threads) {
  if (latents.ndim() != 3) throw std::invalid_argument("latents must be [height, width, channels]");
  const auto stage = make_stage(latents.shape(0), latents.shape(1), latents.shape(2), parity_xor);
  check_shape(mean, "mean", stage.height, stage.width, stage.group_channels());
  check_shape(index, "index", stage.height, stage.width, stage.group_channels());
  check_size(step, "step", stage.channels);
  check_size(rounding, "rounding", 256);
  for (int c = 0; c < stage.channels; ++c) {
    if (step.data()[c] < 1) throw std::invalid_argument("steps must be at least 1");
  }
  const py::ssize_t shape[] = {stage.height, stage.width, stage.group_channels()};
  Array<std::int32_t> symbols(shape);
  std::int32_t* out = symbols.mutable_data();
  {
    const pycodec::SpanScope span("quantize_residuals", [&] {
      return pycodec::SpanWork{latents.nbytes() / 4 + mean.nbytes() + index.nbytes() +
                               symbols.nbytes()};
    });
    py::gil_scoped_release unlocked;
    pycodec::quantize_residuals(stage, latents.data(), mean.data(), index.data(), step.data(),
                                rounding.data(), out, threads);
  }
  return symbols;
}

void reconstruct_stage(const Array<std::int32_t>& symbols, const Array<std::int32_t>& mean,
                       const Array<std::int32_t>& step, int parity_xor,
                       const Array<std::int32_t>& multiplier, int shift,
                       Array<std::int32_t>& latents, Array<std::int8_t>& context, int threads) {
  if (latents.ndim() != 3) throw std::invalid_argument("latents must be [height, width, channels]");
  const auto stage = make_stage(latents.shape(0), latents.shape(1), latents.shape(2), parity_xor);
  check_shape(context, "context", stage.height, stage.width, stage.channels);
  check_shape(mean, "mean", stage.height, stage.width, stage.group_channels());
  check_shape(symbols, "symbols", stage.height, stage.width, stage.group_channels());
  check_size(step, "step", stage.channels);
  check_size(multiplier, "multiplier", stage.channels);
  if (shift < 1 || shift > 38) throw std::invalid_argument("shift must be 1..38");
  std::int32_t* latent_data = latents.mutable_data();
  std::int8_t* context_data = context.mutable_data();
  {
    const pycodec::SpanScope span("reconstruct_stage", [&] {
      return pycodec::SpanWork{symbols.nbytes() + mean.nbytes() +
                               (latents.nbytes() + context.nbytes()) / 4};
    });
    py::gil_scoped_release unlocked;
    pycodec::reconstruct_stage(stage, symbols.data(), mean.data(), step.data(), multiplier.data(),
                               shift, latent_data, context_data, threads);
  }
}

}  // namespace

void bind_quadtree_stage(py::module_& m) {
  m.def("stage_parameters", &stage_parameters, py::arg("head").noconvert(), py::arg("parity_xor"),
        py::arg("log2_step").noconvert(), py::arg("log2_scale_min"), py::arg("levels"),
        py::arg("threads") = 1, "See pycodec.ops.quadtree_stage.");
  m.def("quantize_residuals", &quantize_residuals, py::arg("latents").noconvert(),
        py::arg("parity_xor"), py::arg("mean").noconvert(), py::arg("index").noconvert(),
        py::arg("step").noconvert(), py::arg("rounding").noconvert(), py::arg("threads") = 1,
        "See pycodec.ops.quadtree_stage.");
  m.def("reconstruct_stage", &reconstruct_stage, py::arg("symbols").noconvert(),
        py::arg("mean").noconvert(), py::arg("step").noconvert(), py::arg("parity_xor"),
        py::arg("multiplier").noconvert(), py::arg("shift"), py::arg("latents").noconvert(),
        py::arg("context").noconvert(), py::arg("threads") = 1, "See pycodec.ops.quadtree_stage.");
}
