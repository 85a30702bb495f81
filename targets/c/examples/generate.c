/*
 * Continues a text: generate MODEL "Once upon a time" [--tokens N] [--temperature T] [--seed N] [--chat] [--threads N]
 * [--isa NAME]. Text goes to stdout, and as it comes.
 *
 *     gcc generate.c $(pkg-config --cflags --libs lacuna) -o generate
 */
#include <lacuna.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failed(const char *what, lacuna_status status)
{
    if (status == LACUNA_STATUS_OK)
        return 0;
    fprintf(stderr, "%s: %s: %s\n", what, lacuna_status_name(status), lacuna_last_error());
    return 1;
}

int main(int argc, char **argv)
{
    lacuna_decoder_options options = {.size = sizeof options};
    lacuna_sampler_options sampling = {.size = sizeof sampling};
    lacuna_model *model = NULL;
    lacuna_tokenizer *tokenizer = NULL;
    lacuna_decoder *decoder = NULL;
    lacuna_sampler *sampler = NULL;
    lacuna_text *text = NULL;
    uint32_t *prompt = NULL, token;
    char *conversation = NULL;
    const char *start, *piece;
    size_t count = 0, bytes, capacity, made, most = 64;
    int i, chat = 0, ends = 0, result = 1;

    if (argc < 3) {
        fprintf(stderr, "generate MODEL TEXT [--tokens N] [--temperature T] [--seed N] [--chat] [--threads N] [--isa NAME]\n");
        return 2;
    }
    start = argv[2];
    bytes = strlen(start);
    for (i = 3; i < argc; i++) {
        if (!strcmp(argv[i], "--chat"))
            chat = 1;
        else if (!strcmp(argv[i], "--tokens") && argv[i + 1])
            most = strtoul(argv[++i], NULL, 10);
        else if (!strcmp(argv[i], "--temperature") && argv[i + 1])
            sampling.temperature = strtof(argv[++i], NULL);
        else if (!strcmp(argv[i], "--seed") && argv[i + 1])
            sampling.seed = strtoul(argv[++i], NULL, 10);
        else if (!strcmp(argv[i], "--threads") && argv[i + 1])
            options.threads = (uint32_t)strtoul(argv[++i], NULL, 10);
        else if (!strcmp(argv[i], "--isa") && argv[i + 1])
            options.isa = argv[++i];
    }

    if (failed("model", lacuna_model_open(argv[1], &model)) ||
        failed("tokenizer", lacuna_tokenizer_new(model, &tokenizer)) ||
        failed("text", lacuna_text_new(tokenizer, &text)) ||
        failed("decoder", lacuna_decoder_new(model, &options, &decoder)) ||
        failed("sampler", lacuna_sampler_new(&sampling, &sampler)) ||
        failed("capacity", lacuna_decoder_capacity(decoder, &capacity)))
        goto done;

    if (chat) {
        const char *role = "user", *content = argv[2];
        /* The first call asks how long it is. */
        lacuna_status status = lacuna_tokenizer_chat(tokenizer, &role, &content, 1, NULL, 0, &bytes);
        if (status != LACUNA_STATUS_BUFFER_TOO_SMALL && failed("chat", status))
            goto done;
        conversation = malloc(bytes + 1);
        if (!conversation ||
            failed("chat", lacuna_tokenizer_chat(tokenizer, &role, &content, 1, conversation, bytes + 1, &bytes)))
            goto done;
        start = conversation;
    }
    prompt = malloc(capacity * sizeof *prompt);
    if (!prompt || failed("encode", lacuna_tokenizer_encode(tokenizer, start, bytes, !chat, prompt, capacity, &count)) ||
        failed("prefill", lacuna_decoder_prefill(decoder, prompt, count)))
        goto done;

    for (made = 0; made < most && count + made < capacity; made++) {
        if (failed("sampler", lacuna_sampler_next(sampler, decoder, &token)) ||
            failed("tokenizer", lacuna_tokenizer_ends(tokenizer, token, &ends)))
            goto done;
        if (ends)
            break;
        if (failed("text", lacuna_text_push(text, token, &piece)))
            goto done;
        fputs(piece, stdout);
        fflush(stdout);
        if (failed("step", lacuna_decoder_step(decoder, token)))
            goto done;
    }
    putchar('\n');
    result = 0;
done:
    free(prompt);
    free(conversation);
    lacuna_text_free(text);
    lacuna_sampler_free(sampler);
    lacuna_decoder_free(decoder);
    lacuna_tokenizer_free(tokenizer);
    lacuna_model_free(model);
    return result;
}
