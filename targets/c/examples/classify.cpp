// What a network sees in a picture, from a model in memory: classify MODEL PICTURE.ppm [--isa NAME]
//
//     g++ -std=c++17 classify.cpp $(pkg-config --cflags --libs lacuna) -o classify
#include "image.h"
#include "owned.hpp"
#include <algorithm>
#include <cstring>
#include <fstream>
#include <iterator>
#include <numeric>
#include <vector>

static int run(int argc, char **argv)
{
    lacuna_session_options options{};
    options.size = sizeof options;
    for (int i = 3; i < argc; i++) {
        if (!std::strcmp(argv[i], "--isa") && i + 1 < argc)
            options.isa = argv[++i];
    }

    std::ifstream file(argv[1], std::ios::binary);
    if (!file)
        throw std::runtime_error(std::string(argv[1]) + ": cannot open");
    // The model borrows these bytes: they are declared before it, and so go after it.
    const std::vector<char> bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    const auto model = make<Model>(lacuna_model_open_memory, bytes.data(), bytes.size());
    const auto session = make<Session>(lacuna_session_new, model.get(), &options);

    lacuna_tensor_info in{}, out{};
    in.size = sizeof in;
    out.size = sizeof out;
    check(lacuna_session_input(session.get(), 0, &in));
    check(lacuna_session_output(session.get(), 0, &out));
    if (in.dtype != LACUNA_DTYPE_F32 || in.rank != 4 || in.shape[0] != 1 || (in.shape[1] != 1 && in.shape[1] != 3))
        throw std::runtime_error(std::string(in.name) + " is no picture");

    std::vector<float> pixels(in.bytes / sizeof(float)), scores(out.bytes / sizeof(float));
    // As networks for ImageNet expect colours, and those for Fashion-MNIST greys.
    const bool grey = in.shape[1] == 1;
    const float mean[] = {0.485f, 0.456f, 0.406f}, deviation[] = {0.229f, 0.224f, 0.225f};
    const float grey_mean[] = {0.2860f}, grey_deviation[] = {0.3530f};
    if (image_read(argv[2], pixels.data(), in.shape[1], in.shape[2], in.shape[3], grey ? grey_mean : mean,
                   grey ? grey_deviation : deviation))
        return 1;

    lacuna_input input{};
    input.size = sizeof input;
    input.data = pixels.data();
    input.bytes = in.bytes;
    lacuna_output output{};
    output.size = sizeof output;
    output.data = scores.data();
    output.bytes = out.bytes;
    check(lacuna_session_run(session.get(), &input, 1, &output, 1));

    std::vector<size_t> order(scores.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return scores[a] > scores[b]; });
    for (size_t k = 0; k < std::min<size_t>(5, order.size()); k++)
        std::printf("%4zu  %8.4f\n", order[k], scores[order[k]]);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        std::fputs("classify MODEL PICTURE.ppm [--isa NAME]\n", stderr);
        return 2;
    }
    try {
        return run(argc, argv);
    } catch (const std::exception &e) {
        std::fprintf(stderr, "%s\n", e.what());
        return 1;
    }
}
