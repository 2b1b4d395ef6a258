// An integer network run without a stop between its layers. docs/quantization.md says what layers
// compute; pycodec/models/integer_transforms.py makes programs of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "cpu/activation_frame.hpp"
#include "cpu/frame_borders.hpp"
#include "cpu/quantized_conv2d.hpp"
#include "cpu/requantize.hpp"

namespace pycodec {

// Buffers that were used before: new memory would have to be mapped, page by page, in every run.
class BufferPool {
 public:
  struct Buffer {
    std::size_t size;
    AlignedBuffer memory;
  };
  Buffer take(std::size_t size);
  void give_back(Buffer buffer);

 private:
  std::mutex mutex_;
  std::vector<Buffer> free_;
};

// Steps in the order in which they were added. *Values* are dense tensors: 0 is the input, each of
// the others is written by the convolutions that name it. A layer's input lies in its frame. All
// have the input's batch of images, which may be tiles that border each other.
class TransformProgram {
 public:
  struct Shape {
    std::int64_t batch, height, width;
    int channels;
    OutputType type;
  };

  // Returns the layer's number. `input` is what its frame holds, `name` that of its spans.
  int add_layer(std::shared_ptr<const QuantizedConv2d> conv, InputType input,
                const std::string& name);

  // Value 0, uint8 [batch][height][width][3], to the layer's frame: factor by factor patches become
  // channels (dy, dx, c).
  void unshuffle(int layer, int factor);

  // A value of int16 or int32 to the layer's frame. Returns the place of the parameters in `run`.
  int requantize(int value, int layer);

  // To the frame of another layer, which reads uint8.
  void convolve_to_layer(int layer, int target);

  // To a value; added to what it holds if `residual`. Returns the value's number.
  int convolve(int layer, int value, bool residual);

  // Of the last step's value, for an input of this size. Throws std::invalid_argument where steps
  // do not fit each other.
  Shape output_shape(const Shape& input) const;

  // input: [batch][height][width][channels]; out: of output_shape. borders: of all frames with
  // margins, by the height of their images; if there are none, margins are padding.
  void run(const void* input, const Shape& shape,
           const std::vector<RequantizeParameters>& parameters,
           const std::vector<FrameBorders>& borders, void* out, int threads) const;

 private:
  enum class Kind { kUnshuffle, kRequantize, kConvolveToLayer, kConvolve };
  struct Step {
    Kind kind;
    int layer;
    int other;  // factor, value, target layer, or value
    int parameters = 0;
    bool residual = false;
  };
  struct Layer {
    std::shared_ptr<const QuantizedConv2d> conv;
    InputType input;
    RequantizeKernel requantize;
    const char* name;
  };

  const Layer& layer(int number) const;

  // Sizes of values and frames as the steps are walked through.
  struct Sizes {
    std::vector<Shape> values;
    std::vector<FrameShape> frames;
  };
  Sizes sizes(const Shape& input) const;

  std::vector<Layer> layers_;
  std::vector<Step> steps_;
  int num_values_ = 1;
  int num_parameters_ = 0;
  mutable BufferPool pool_;
};

}  // namespace pycodec
