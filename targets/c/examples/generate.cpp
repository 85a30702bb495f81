// Continues a text, the most likely token at a time, chosen here from the logits:
// generate MODEL "Once upon a time" [--tokens N] [--isa NAME]
//
//     g++ -std=c++17 generate.cpp $(pkg-config --cflags --libs lacuna) -o generate
#include "owned.hpp"
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

static void run(int argc, char **argv)
{
    size_t most = 64;
    lacuna_decoder_options options{};
    options.size = sizeof options;
    for (int i = 3; i + 1 < argc; i++) {
        if (!std::strcmp(argv[i], "--tokens"))
            most = std::strtoul(argv[++i], nullptr, 10);
        else if (!std::strcmp(argv[i], "--isa"))
            options.isa = argv[++i];
    }

    const auto model = make<Model>(lacuna_model_open, argv[1]);
    const auto tokenizer = make<Tokenizer>(lacuna_tokenizer_new, model.get());
    const auto text = make<Text>(lacuna_text_new, tokenizer.get());
    const auto decoder = make<Decoder>(lacuna_decoder_new, model.get(), &options);

    size_t capacity = 0, vocabulary = 0, count = 0;
    check(lacuna_decoder_capacity(decoder.get(), &capacity));
    check(lacuna_decoder_vocabulary(decoder.get(), &vocabulary));
    std::vector<uint32_t> prompt(capacity);
    check(lacuna_tokenizer_encode(tokenizer.get(), argv[2], std::strlen(argv[2]), 1, prompt.data(), prompt.size(), &count));
    check(lacuna_decoder_prefill(decoder.get(), prompt.data(), count));

    std::vector<float> logits(vocabulary);
    for (size_t made = 0; made < most && count + made < capacity; made++) {
        size_t n = 0;
        check(lacuna_decoder_logits(decoder.get(), logits.data(), logits.size(), &n));
        const auto token = uint32_t(std::max_element(logits.begin(), logits.end()) - logits.begin());
        int32_t ends = 0;
        check(lacuna_tokenizer_ends(tokenizer.get(), token, &ends));
        if (ends)
            break;
        const char *piece = nullptr;
        check(lacuna_text_push(text.get(), token, &piece));
        std::fputs(piece, stdout);
        std::fflush(stdout);
        check(lacuna_decoder_step(decoder.get(), token));
    }
    std::putchar('\n');
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        std::fputs("generate MODEL TEXT [--tokens N] [--isa NAME]\n", stderr);
        return 2;
    }
    try {
        run(argc, argv);
    } catch (const std::exception &e) {
        std::fprintf(stderr, "%s\n", e.what());
        return 1;
    }
    return 0;
}
