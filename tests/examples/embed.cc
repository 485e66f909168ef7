// Tells two stories at the same time: one as it comes, one when it is done.
#include <cstdio>

#include "engine/engine.h"

int main(int argc, char** argv) try {
  auto model = gsa::load_model(argc > 1 ? argv[1] : "models/tale-10m.safetensors");
  gsa::Engine engine(model, {.states = 8, .cache_bytes = 64 << 20});

  gsa::Request request{.prompt = model->tokenizer->encode("Once upon a time"), .max_tokens = 60};
  request.sampling = {.temperature = 0.8, .top_p = 0.95, .seed = 7};
  request.stop = {"THE END"};

  // Callbacks come on the engine's thread. No id comes back where the queue is full.
  auto id = engine.submit(
      request, [](gsa::Result&&) { std::puts(""); },
      [](const gsa::Delta& delta) {
        std::fwrite(delta.text.data(), 1, delta.text.size(), stdout);
      });
  if (!id) return 1;

  request.sampling.seed = 8;
  request.deadline = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  std::future<gsa::Result> second = engine.submit(request);

  engine.stop_accepting();
  engine.drain();  // engine.cancel(*id) would end the first one earlier
  std::printf("---%s\n", second.get().completions[0].text.c_str());
} catch (const gsa::Error& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
