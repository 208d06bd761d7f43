// Classifies a picture with ncnn: ./classify PICTURE.ppm
#include <net.h>

#include <cstring>

#include "picture.h"

int main(int count, char** words) {
  std::vector<float> x = count == 2 ? read_picture(words[1]) : std::vector<float>();
  if (x.empty()) return 2;
  ncnn::Net network;
  network.opt.num_threads = THREADS;
  if (network.load_param(FOLDER "/model.ncnn.param") || network.load_model(FOLDER "/model.ncnn.bin")) return 1;
  ncnn::Mat image(WIDTH, HEIGHT, CHANNELS), logits;
  for (int channel = 0; channel < CHANNELS; ++channel)  // each begins at an aligned address
    std::memcpy(image.channel(channel), &x[channel * HEIGHT * WIDTH], HEIGHT * WIDTH * sizeof(float));
  ncnn::Extractor extractor = network.create_extractor();
  extractor.input("x", image);
  if (extractor.extract("logits", logits)) return 1;
  print_classes(words[1], logits);
  return 0;
}
