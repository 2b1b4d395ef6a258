#include "cpu/transform_program.hpp"

#include <algorithm>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include "cpu/parallel.hpp"
#include "cpu/spans.hpp"

namespace pycodec {
namespace {

constexpr std::size_t kMaxFree = 16;  // buffers that a pool keeps
constexpr int kColours = 3;

void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(std::string("transform program: ") + message);
}

bool is_wide(OutputType type) { return type == OutputType::kInt32; }

std::size_t value_bytes(const TransformProgram::Shape& shape) {
  return static_cast<std::size_t>(shape.batch * shape.height * shape.width) * shape.channels *
         output_bytes(shape.type);
}

template <class Value>
void unshuffle_row(const std::uint8_t* picture, std::int64_t picture_row, int factor,
                   const FrameShape& frame, std::uint8_t* out) {
  const std::int64_t run = std::int64_t{factor} * kColours;
  for (std::int64_t x = 0; x < frame.width; ++x, out += frame.pixel_bytes()) {
    auto* values = reinterpret_cast<Value*>(out);
    for (int dy = 0; dy < factor; ++dy, values += run) {
      const std::uint8_t* source = picture + dy * picture_row + x * run;
      std::copy(source, source + run, values);
    }
  }
}

}  // namespace

BufferPool::Buffer BufferPool::take(std::size_t size) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    auto best = free_.end();
    for (auto i = free_.begin(); i != free_.end(); ++i) {
      const bool fits = i->size >= size && i->size <= 2 * size;
      if (fits && (best == free_.end() || i->size < best->size)) best = i;
    }
    if (best != free_.end()) {
      Buffer found = std::move(*best);
      free_.erase(best);
      return found;
    }
  }
  return {size, AlignedBuffer(size)};
}

void BufferPool::give_back(Buffer buffer) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (free_.size() == kMaxFree) free_.erase(free_.begin());
  free_.push_back(std::move(buffer));
}

int TransformProgram::add_layer(std::shared_ptr<const QuantizedConv2d> conv, InputType input,
                                const std::string& name) {
  layers_.push_back({std::move(conv), input, requantize_kernel(), span_name(name)});
  return static_cast<int>(layers_.size()) - 1;
}

const TransformProgram::Layer& TransformProgram::layer(int number) const {
  require(number >= 0 && number < static_cast<int>(layers_.size()), "there is no such layer");
  return layers_[number];
}

void TransformProgram::unshuffle(int number, int factor) {
  require(factor >= 1 && factor <= 16, "the factor must be 1 to 16");
  require(layer(number).input == InputType::kUint8, "pixels are uint8");
  require(layer(number).conv->shape().in_channels == kColours * factor * factor,
          "the layer has another number of channels than the patches");
  steps_.push_back({Kind::kUnshuffle, number, factor});
}

int TransformProgram::requantize(int value, int number) {
  require(value >= 0 && value < num_values_, "there is no such value");
  layer(number);
  steps_.push_back({Kind::kRequantize, number, value, num_parameters_});
  return num_parameters_++;
}

void TransformProgram::convolve_to_layer(int number, int target) {
  require(layer(target).input == InputType::kUint8 &&
              layer(number).conv->output().type == OutputType::kUint8,
          "only uint8 goes from layer to layer");
  require(layer(number).conv->shape().upscale == 1, "patches go to values");
  require(layer(number).conv->shape().out_channels == layer(target).conv->shape().in_channels,
          "the next layer has another number of channels");
  steps_.push_back({Kind::kConvolveToLayer, number, target});
}

int TransformProgram::convolve(int number, int value, bool residual) {
  const QuantizedConv2d& conv = *layer(number).conv;
  require(!residual || (value > 0 && value < num_values_), "there is no such value to add to");
  require(!residual || (conv.output().type == OutputType::kInt16 && conv.shape().upscale == 1),
          "only int16 is added up");
  if (!residual) value = num_values_++;
  steps_.push_back({Kind::kConvolve, number, value, 0, residual});
  return value;
}

TransformProgram::Sizes TransformProgram::sizes(const Shape& input) const {
  Sizes found{std::vector<Shape>(num_values_), std::vector<FrameShape>(layers_.size())};
  found.values[0] = input;
  std::vector<bool> filled(layers_.size(), false);
  const auto fill = [&](int number, std::int64_t height, std::int64_t width) {
    const Layer& to = layer(number);
    found.frames[number] = to.conv->frame_shape(to.input, input.batch, height, width);
    filled[number] = true;
  };
  for (const Step& step : steps_) {
    const QuantizedConv2d& conv = *layer(step.layer).conv;
    switch (step.kind) {
      case Kind::kUnshuffle:
        require(input.type == OutputType::kUint8 && input.channels == kColours &&
                    input.height % step.other == 0 && input.width % step.other == 0,
                "the input is no picture of whole patches");
        fill(step.layer, input.height / step.other, input.width / step.other);
        break;
      case Kind::kRequantize: {
        const Shape& from = found.values[step.other];
        require(from.type == OutputType::kInt16 || is_wide(from.type),
                "only int16 and int32 are requantized");
        require(from.channels == conv.shape().in_channels,
                "a value has another number of channels");
        fill(step.layer, from.height, from.width);
        break;
      }
      default: {
        require(filled[step.layer], "a layer has no input");
        const FrameShape& frame = found.frames[step.layer];
        const std::int64_t height = conv.out_size(frame.height), width = conv.out_size(frame.width);
        if (step.kind == Kind::kConvolveToLayer) {
          fill(step.other, height, width);
          break;
        }
        const int upscale = conv.shape().upscale;
        const Shape shape = {input.batch, height * upscale, width * upscale,
                             conv.shape().out_channels / upscale / upscale, conv.output().type};
        const Shape& before = found.values[step.other];
        require(!step.residual || (before.height == shape.height && before.width == shape.width &&
                                   before.channels == shape.channels && before.type == shape.type),
                "what is added up has two shapes");
        found.values[step.other] = shape;
      }
    }
  }
  return found;
}

TransformProgram::Shape TransformProgram::output_shape(const Shape& input) const {
  require(!steps_.empty() && steps_.back().kind == Kind::kConvolve, "the last step has no value");
  return sizes(input).values[steps_.back().other];
}

void TransformProgram::run(const void* input, const Shape& shape,
                           const std::vector<RequantizeParameters>& parameters,
                           const std::vector<FrameBorders>& borders, void* out, int threads) const {
  output_shape(shape);
  const Sizes sizes = this->sizes(shape);
  require(static_cast<int>(parameters.size()) == num_parameters_,
          "another number of requantizations than there are");
  std::vector<std::optional<BufferPool::Buffer>> frames(layers_.size()), values(num_values_);
  const auto frame_of = [&](int number) {
    const std::size_t size = layers_[number].conv->frame_bytes(sizes.frames[number]);
    frames[number] = pool_.take(size);
    return frames[number]->memory.data();
  };
  const auto writer_of = [&](int number) {
    return FrameWriter(sizes.frames[number], layers_[number].conv->zero_point());
  };
  const auto surround = [&](int number) {
    const FrameShape& frame = sizes.frames[number];
    if (borders.empty() || frame.margin_y + frame.margin_x == 0) return;
    const auto own = std::find_if(borders.begin(), borders.end(),
                                  [&](const FrameBorders& b) { return b.height == frame.height; });
    require(own != borders.end(), "there are no borders for tiles of that height");
    fill_borders(*own, frame, frames[number]->memory.data(), threads);
  };
  const int last = steps_.back().other;
  const auto value_of = [&](int number) -> void* {
    if (number == last) return out;
    if (!values[number]) values[number] = pool_.take(value_bytes(sizes.values[number]));
    return values[number]->memory.data();
  };

  for (const Step& step : steps_) {
    const Layer& layer = layers_[step.layer];
    const bool is_convolution = step.kind == Kind::kConvolveToLayer || step.kind == Kind::kConvolve;
    std::optional<SpanScope<SpanWork (*)()>> layer_span;
    if (is_convolution) {
      layer_span.emplace(layer.name,
                         [] { return SpanWork{0, 0, Arithmetic::kNone, -1, SpanKind::kLayer}; });
    }
    const SpanScope span(is_convolution ? "quantized_conv2d" : "requantize", [&] {
      if (is_convolution) return layer.conv->work(sizes.frames[step.layer]);
      const FrameShape& frame =
          sizes.frames[step.layer];  // of int16 or pixels, once read and written
      return SpanWork{3 * frame.batch * frame.height * frame.width * frame.channels};
    });
    switch (step.kind) {
      case Kind::kUnshuffle: {
        const FrameShape& frame = sizes.frames[step.layer];
        const FrameWriter writer = writer_of(step.layer);
        std::uint8_t* data = frame_of(step.layer);
        const std::int64_t picture_row = shape.width * kColours;
        const std::int64_t rows = frame.height + 2 * frame.margin_y;
        parallel_for(frame.batch * rows, threads, [&](std::int64_t row) {
          writer.write_margins(data, row);
          const std::int64_t image = row / rows, y = row % rows - frame.margin_y;
          if (y < 0 || y >= frame.height) return;
          const auto* source = static_cast<const std::uint8_t*>(input) +
                               (image * shape.height + y * step.other) * picture_row;
          std::uint8_t* to = data + frame.offset(image, row % rows, frame.margin_x);
          frame.value_bytes == 1
              ? unshuffle_row<std::uint8_t>(source, picture_row, step.other, frame, to)
              : unshuffle_row<std::int16_t>(source, picture_row, step.other, frame, to);
        });
        surround(step.layer);
        break;
      }
      case Kind::kRequantize: {
        const RequantizeParameters& values_to = parameters[step.parameters];
        values_to.check(shape.batch);
        require(values_to.channels == sizes.frames[step.layer].channels,
                "a requantization has another number of channels");
        const FrameWriter writer = writer_of(step.layer);
        const void* from = step.other == 0 ? input : value_of(step.other);
        requantize_to_frame(layer.requantize, values_to, from,
                            is_wide(sizes.values[step.other].type), writer, frame_of(step.layer),
                            threads);
        surround(step.layer);
        break;
      }
      case Kind::kConvolveToLayer: {
        const FrameShape& next = sizes.frames[step.other];
        const FrameWriter writer = writer_of(step.other);
        std::uint8_t* data = frame_of(step.other);
        for (std::int64_t row = 0; row < next.batch * (next.height + 2 * next.margin_y); ++row) {
          writer.write_margins(data, row);
        }
        const OutputType stored = next.value_bytes == 2 ? OutputType::kInt16 : OutputType::kUint8;
        layer.conv->run_frame(frames[step.layer]->memory.data(), sizes.frames[step.layer],
                              {data + next.offset(0, next.margin_y, next.margin_x), stored,
                               next.pixel_bytes(), next.row_bytes(), next.image_bytes(), nullptr},
                              threads);
        surround(step.other);
        break;
      }
      case Kind::kConvolve: {
        void* to = value_of(step.other);
        const FrameShape& frame = sizes.frames[step.layer];
        const auto* residual = step.residual ? static_cast<const std::int16_t*>(to) : nullptr;
        layer.conv->run_frame(frames[step.layer]->memory.data(), frame,
                              layer.conv->dense_target(to, residual, frame.height, frame.width),
                              threads);
      }
    }
    if (is_convolution) {
      pool_.give_back(std::move(*frames[step.layer]));
      frames[step.layer].reset();
    }
  }
  for (auto& value : values) {
    if (value) pool_.give_back(std::move(*value));
  }
}

}  // namespace pycodec
