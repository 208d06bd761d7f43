// Classifies a picture with LiteRT: ./classify PICTURE.ppm
#include <cstdint>

#include "picture.h"

// What is used here of LiteRT's C interface. Its Python package brings the library, but no headers.
extern "C" {
using Handle = void*;
struct TensorType {
  int element;
  unsigned rank : 7, has_strides : 1;
  std::int32_t sides[8];
  std::uint32_t strides[8];
};
int LiteRtCreateEnvironment(int, const void* options, Handle* environment);
int LiteRtCreateModelFromFile(Handle environment, const char* file, Handle* model);
int LiteRtCreateOptions(Handle* options);
int LiteRtSetOptionsHardwareAccelerators(Handle options, int accelerators);
int LiteRtCreateCompiledModel(Handle environment, Handle model, Handle options, Handle* compiled);
int LiteRtCreateTensorBufferFromHostMemory(const TensorType*, void*, std::size_t bytes, void (*)(void*), Handle* buffer);
int LiteRtRunCompiledModel(Handle compiled, std::size_t signature, std::size_t, Handle* inputs, std::size_t, Handle* outputs);
}
constexpr int FLOAT32 = 1, CPU = 1;
alignas(64) static float x[BATCH * CHANNELS * HEIGHT * WIDTH], logits[BATCH * CLASSES];

int main(int count, char** words) {
  std::vector<float> picture = count == 2 ? read_picture(words[1]) : std::vector<float>();
  if (picture.empty()) return 2;
  std::copy(picture.begin(), picture.end(), x);  // the first of BATCH images
  Handle environment, model, options, network, input, output;
  TensorType images{FLOAT32, 4, 0, {BATCH, CHANNELS, HEIGHT, WIDTH}, {}}, answers{FLOAT32, 2, 0, {BATCH, CLASSES}, {}};
  if (LiteRtCreateEnvironment(0, nullptr, &environment) ||
      LiteRtCreateModelFromFile(environment, FOLDER "/" MODEL, &model) || LiteRtCreateOptions(&options) ||
      LiteRtSetOptionsHardwareAccelerators(options, CPU) ||
      LiteRtCreateCompiledModel(environment, model, options, &network) ||
      LiteRtCreateTensorBufferFromHostMemory(&images, x, sizeof x, nullptr, &input) ||
      LiteRtCreateTensorBufferFromHostMemory(&answers, logits, sizeof logits, nullptr, &output) ||
      LiteRtRunCompiledModel(network, 0, 1, &input, 1, &output))
    return 1;
  print_classes(words[1], logits);
  return 0;
}
