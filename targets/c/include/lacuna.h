/*
 * Lacuna runs pruned models. This is its C API.
 *
 * Every call that can fail returns a status; lacuna_last_error says more, in words. What a call makes is written
 * through its last argument, which is left as it was when the call fails.
 *
 * Handles are names, not addresses: one that is NULL, freed, of another kind or made up is answered with
 * LACUNA_STATUS_INVALID_HANDLE. Freeing NULL does nothing. Whatever was made from a model keeps what it needs of
 * it: a model may be freed before its sessions.
 *
 * Models and tokenizers can be used by any number of threads at once. Sessions, decoders, samplers and texts belong
 * to one thread at a time; a call while another thread is in one returns LACUNA_STATUS_BUSY and changes nothing.
 *
 * Structs that start with `size` hold sizeof of themselves there and zeros in what the app does not use. A field
 * that this library does not know must be zero.
 *
 * Strings are UTF-8 and end with a zero byte. Nothing reads an environment variable, starts a thread that was not
 * asked for, or opens a file that was not named.
 */

#ifndef LACUNA_H
#define LACUNA_H

/* Made from targets/c/src by the test `header` (LACUNA_WRITE_HEADER=1 writes it anew). */

#include <stddef.h>
#include <stdint.h>

// The version of this interface that the header describes. It grows when something that an app may rely on
// changes; new functions, and new fields at the end of structs that start with their size, do not change it.
#define LACUNA_ABI_VERSION 1

// As many threads as the process may use cores.
#define LACUNA_THREADS_ALL UINT32_MAX

// What came of a call.
typedef enum lacuna_status {
    // It was done.
    LACUNA_STATUS_OK = 0,
    // An argument, an option or a tensor is not what it must be.
    LACUNA_STATUS_INVALID_ARGUMENT = 1,
    // A handle is NULL, freed, of another kind, or none.
    LACUNA_STATUS_INVALID_HANDLE = 2,
    // The operating system refused: no such file, no memory map, no thread.
    LACUNA_STATUS_IO = 3,
    // The file is no model, is damaged, or asks for what this library cannot run.
    LACUNA_STATUS_INVALID_MODEL = 4,
    // The caller's buffer is too small; how much is needed was written.
    LACUNA_STATUS_BUFFER_TOO_SMALL = 5,
    // Another thread is in the session, decoder, sampler or text.
    LACUNA_STATUS_BUSY = 6,
    // This build of the library, or this system, cannot do it.
    LACUNA_STATUS_UNSUPPORTED = 7,
    // A fault of the library. What the call worked on should be freed.
    LACUNA_STATUS_INTERNAL = 8,
} lacuna_status;

// A language model with the keys and values of one sequence.
typedef struct lacuna_decoder lacuna_decoder;

// A model: a Lacuna file that was opened and checked. Weights are mapped, not copied.
typedef struct lacuna_model lacuna_model;

// Chooses tokens; keeps the state of its random numbers.
typedef struct lacuna_sampler lacuna_sampler;

// A planned model with its own activations and threads. Weights are shared with everything else that was made
// from the same model.
typedef struct lacuna_session lacuna_session;

// Turns tokens into text as they come.
typedef struct lacuna_text lacuna_text;

// The tokenizer that travels in the file of a language model.
typedef struct lacuna_tokenizer lacuna_tokenizer;

// A type of elements.
typedef uint32_t lacuna_dtype;

// An input or an output, as a question is answered. What it points to belongs to the model or session and goes
// with it.
typedef struct lacuna_tensor_info {
    // sizeof(lacuna_tensor_info), set by the app before it asks.
    size_t size;
    // Its name.
    const char *name;
    // Its dimensions, outermost first. One that is 0 is bound when a session is made: see
    // lacuna_model_input_symbol.
    const size_t *shape;
    // The number of dimensions.
    size_t rank;
    // Bytes of all elements; 0 while a dimension is not bound.
    size_t bytes;
    // Of integers that are indices, such as token ids: how many there are to index. Otherwise 0.
    size_t index_limit;
    // The type of its elements.
    lacuna_dtype dtype;
    uint32_t reserved;
} lacuna_tensor_info;

// The size of a dimension that has a name.
typedef struct lacuna_symbol {
    // The name, such as "N".
    const char *name;
    // The size.
    size_t value;
} lacuna_symbol;

// Choices that are on or off, added up.
typedef uint32_t lacuna_flags;

// How a session is planned and run.
typedef struct lacuna_session_options {
    // sizeof(lacuna_session_options).
    size_t size;
    // The instruction set: "scalar", "neon", "avx2", "avx512", ...; NULL takes the best one here.
    const char *isa;
    // Sizes of dimensions that have names; those not listed are 1.
    const struct lacuna_symbol *symbols;
    // How many are listed.
    size_t symbol_count;
    // A directory where packed weights are kept, and mapped the next time instead of packed again; NULL for
    // none. Who can write there can change the model's answers.
    const char *pack_cache;
    // Threads that work on one run, the one that calls among them: 0 and 1 start none. LACUNA_THREADS_ALL
    // takes every core.
    uint32_t threads;
    // LACUNA_FLAG_...
    lacuna_flags flags;
} lacuna_session_options;

// What a run reads: the app's own memory, borrowed for the run.
typedef struct lacuna_input {
    // sizeof(lacuna_input), in every element of an array.
    size_t size;
    // The input's name; NULL for the one at this place of the array.
    const char *name;
    // The elements, row-major, aligned to their type.
    const void *data;
    // Bytes of all elements.
    size_t bytes;
    // The dimensions, which are checked; NULL for those that the session was planned for.
    const size_t *shape;
    // The number of dimensions, where there is a shape.
    size_t rank;
    // The type of the elements.
    lacuna_dtype dtype;
    uint32_t reserved;
} lacuna_input;

// What a run fills: the app's own memory.
typedef struct lacuna_output {
    // sizeof(lacuna_output), in every element of an array.
    size_t size;
    // The output's name; NULL for the one at this place of the array.
    const char *name;
    // Room for the elements, row-major, aligned to their type; it overlaps no input and no other output.
    void *data;
    // Bytes of all elements.
    size_t bytes;
    // The dimensions, which are checked; NULL for those that the session was planned for.
    const size_t *shape;
    // The number of dimensions, where there is a shape.
    size_t rank;
    // The type of the elements: LACUNA_DTYPE_F32.
    lacuna_dtype dtype;
    uint32_t reserved;
} lacuna_output;

// What a session or decoder uses.
typedef struct lacuna_usage {
    // sizeof(lacuna_usage), set by the app before it asks.
    size_t size;
    // The instruction set. It belongs to the session or decoder.
    const char *isa;
    // Threads of a run, the one that calls among them.
    size_t threads;
    // Bytes of activations, scratch, keys and values.
    size_t working_bytes;
    // Bytes of weights that were packed for this device; sessions of one model share them.
    size_t packed_bytes;
    // Bytes of weights that are used where they lie in the file.
    size_t mapped_bytes;
} lacuna_usage;

// How a decoder is planned and run.
typedef struct lacuna_decoder_options {
    // sizeof(lacuna_decoder_options).
    size_t size;
    // As in lacuna_session_options.
    const char *isa;
    // The longest sequence; 0 takes the model's context, 2048 at most. Its keys and values are held from the
    // start.
    size_t capacity;
    // Tokens of a prompt that are processed at a time; 0 takes 128.
    size_t chunk;
    // As in lacuna_session_options.
    uint32_t threads;
    // LACUNA_FLAG_...
    lacuna_flags flags;
} lacuna_decoder_options;

// How the next token is chosen.
typedef struct lacuna_sampler_options {
    // sizeof(lacuna_sampler_options).
    size_t size;
    // Where the random numbers start: equal seeds give equal texts.
    uint64_t seed;
    // Choose among so many of the most likely tokens; 0 for all.
    size_t top_k;
    // Logits are divided by it; 0 takes the most likely token.
    float temperature;
    // Choose among the most likely tokens that hold this share of the probability together; 0 and 1 for all.
    float top_p;
} lacuna_sampler_options;

// `float`.
#define LACUNA_DTYPE_F32 0

// `int64_t`: token ids, masks.
#define LACUNA_DTYPE_I64 1

// Run every weight dense.
#define LACUNA_FLAG_DENSE 1

// Round the inputs of linear layers as their weights are: to bfloat16, or signed bytes. Faster on CPUs that
// multiply such. A decoder does it by itself where it is faster.
#define LACUNA_FLAG_ROUND_INPUTS 2

// Of a decoder: never round inputs.
#define LACUNA_FLAG_KEEP_INPUTS 4

// Of a session: run inputs that hold NaN or infinities; otherwise they are an error.
#define LACUNA_FLAG_ALLOW_NON_FINITE 8

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The version of the interface that the library has: the app's LACUNA_ABI_VERSION, or it was linked with
// another library than it was compiled for.
uint32_t lacuna_abi_version(void);

// The library's own version, such as "0.1.0".
const char *lacuna_version(void);

// What was wrong with the last call that failed on this thread: it names the file, the tensor and the value.
// Empty where none did. It stays as it is until the thread's next call that fails; the app does not free it.
const char *lacuna_last_error(void);

// A status in a word or two, such as "invalid argument"; "unknown" for other numbers.
const char *lacuna_status_name(int32_t status);

// Opens a Lacuna file. It is mapped: while the model or anything made from it is there, the file must not be
// changed in place; replacing it by renaming another one is fine.
//
// `path` ends with a zero byte; `out` has room for a handle.
enum lacuna_status lacuna_model_open(const char *path, struct lacuna_model **out);

// Opens the bytes of a whole Lacuna file in memory. They are not copied: they must stay where they are, and as
// they are, until the model and everything that was made from it is freed.
//
// As above.
enum lacuna_status lacuna_model_open_memory(const void *data,
                                            size_t bytes,
                                            struct lacuna_model **out);

// Opens a Lacuna file that is `length` bytes from `offset` on of an open file, such as an uncompressed asset of
// an Android package; a length of 0 is all of the rest. It is mapped as by lacuna_model_open. The descriptor
// stays the app's, which may close it afterwards. LACUNA_STATUS_UNSUPPORTED on Windows.
//
// `out` has room for a handle.
enum lacuna_status lacuna_model_open_fd(int32_t fd,
                                        uint64_t offset,
                                        uint64_t length,
                                        struct lacuna_model **out);

// The number of the model's inputs.
//
// `count` has room for it.
enum lacuna_status lacuna_model_input_count(const struct lacuna_model *model, size_t *count);

// One of the model's inputs. Outputs are known when a session is made.
//
// `info->size` is set.
enum lacuna_status lacuna_model_input(const struct lacuna_model *model,
                                      size_t index,
                                      struct lacuna_tensor_info *info);

// The name of a dimension that is bound when a session is made, such as "N"; NULL for one that is fixed.
//
// `symbol` has room for a pointer.
enum lacuna_status lacuna_model_input_symbol(const struct lacuna_model *model,
                                             size_t index,
                                             size_t axis,
                                             const char **symbol);

// Frees a model. Sessions, decoders and tokenizers that were made from it go on.
enum lacuna_status lacuna_model_free(struct lacuna_model *model);

// Plans a model for this device. NULL options are zeros: the thread that calls, the best instruction set.
//
// Strings end with a zero byte; `options->size` is set; `out` has room for a handle.
enum lacuna_status lacuna_session_new(const struct lacuna_model *model,
                                      const struct lacuna_session_options *options,
                                      struct lacuna_session **out);

// The number of inputs.
//
// `count` has room for it.
enum lacuna_status lacuna_session_input_count(const struct lacuna_session *session, size_t *count);

// The number of outputs.
//
// `count` has room for it.
enum lacuna_status lacuna_session_output_count(const struct lacuna_session *session, size_t *count);

// One of the inputs, with the shape that it was planned for.
//
// `info->size` is set.
enum lacuna_status lacuna_session_input(const struct lacuna_session *session,
                                        size_t index,
                                        struct lacuna_tensor_info *info);

// One of the outputs, with the shape that it was planned for.
//
// `info->size` is set.
enum lacuna_status lacuna_session_output(const struct lacuna_session *session,
                                         size_t index,
                                         struct lacuna_tensor_info *info);

// Runs the model once: every input is read and every output is filled, each named or at its place. Nothing is
// written when a tensor does not fit.
//
// The memory is there and as large as `bytes` says; nobody else writes to it during the run.
enum lacuna_status lacuna_session_run(const struct lacuna_session *session,
                                      const struct lacuna_input *inputs,
                                      size_t input_count,
                                      const struct lacuna_output *outputs,
                                      size_t output_count);

// What the session uses.
//
// `usage->size` is set.
enum lacuna_status lacuna_session_usage(const struct lacuna_session *session, struct lacuna_usage *usage);

// Frees a session and ends its threads.
enum lacuna_status lacuna_session_free(struct lacuna_session *session);

// Plans a language model for this device. NULL options are zeros.
//
// Strings end with a zero byte; `options->size` is set; `out` has room for a handle.
enum lacuna_status lacuna_decoder_new(const struct lacuna_model *model,
                                      const struct lacuna_decoder_options *options,
                                      struct lacuna_decoder **out);

// Processes tokens after those before: a prompt, or a part of it. lacuna_decoder_logits then has what follows the
// last one. When they do not fit, or one is not in the vocabulary, the sequence is as it was.
//
// There are `count` tokens.
enum lacuna_status lacuna_decoder_prefill(const struct lacuna_decoder *decoder,
                                          const uint32_t *tokens,
                                          size_t count);

// Processes one token.
enum lacuna_status lacuna_decoder_step(const struct lacuna_decoder *decoder, uint32_t token);

// Copies the logits that follow the last token: one for each token of the vocabulary.
//
// `logits` has room for `capacity` of them, `count` for their number; NULL with 0 asks for the number alone and
// returns LACUNA_STATUS_BUFFER_TOO_SMALL.
enum lacuna_status lacuna_decoder_logits(const struct lacuna_decoder *decoder,
                                         float *logits,
                                         size_t capacity,
                                         size_t *count);

// Tokens processed so far: the position of the next one.
//
// `position` has room for it.
enum lacuna_status lacuna_decoder_position(const struct lacuna_decoder *decoder, size_t *position);

// The longest sequence.
//
// `capacity` has room for it.
enum lacuna_status lacuna_decoder_capacity(const struct lacuna_decoder *decoder, size_t *capacity);

// Tokens of the vocabulary: how many logits there are.
//
// `vocabulary` has room for it.
enum lacuna_status lacuna_decoder_vocabulary(const struct lacuna_decoder *decoder, size_t *vocabulary);

// Forgets every token: a new sequence.
enum lacuna_status lacuna_decoder_reset(const struct lacuna_decoder *decoder);

// Forgets the tokens from `position` on, so that the sequence can be continued in another way.
enum lacuna_status lacuna_decoder_truncate(const struct lacuna_decoder *decoder, size_t position);

// What the decoder uses.
//
// `usage->size` is set.
enum lacuna_status lacuna_decoder_usage(const struct lacuna_decoder *decoder, struct lacuna_usage *usage);

// Frees a decoder and ends its threads.
enum lacuna_status lacuna_decoder_free(struct lacuna_decoder *decoder);

// Makes a sampler. NULL options are zeros: always the most likely token.
//
// `options->size` is set; `out` has room for a handle.
enum lacuna_status lacuna_sampler_new(const struct lacuna_sampler_options *options,
                                      struct lacuna_sampler **out);

// Chooses the token that follows the last one of the decoder, which does not process it yet.
//
// `token` has room for it.
enum lacuna_status lacuna_sampler_next(const struct lacuna_sampler *sampler,
                                       const struct lacuna_decoder *decoder,
                                       uint32_t *token);

// Frees a sampler.
enum lacuna_status lacuna_sampler_free(struct lacuna_sampler *sampler);

// The tokenizer of a model.
//
// `out` has room for a handle.
enum lacuna_status lacuna_tokenizer_new(const struct lacuna_model *model, struct lacuna_tokenizer **out);

// The tokens of `bytes` bytes of text. With `special` not 0, what the tokenizer puts around a text is added, and the
// model's first token where it asks for one. `count` gets their number, also when the room is too small.
//
// The text has `bytes` bytes, `tokens` room for `capacity` tokens.
enum lacuna_status lacuna_tokenizer_encode(const struct lacuna_tokenizer *tokenizer,
                                           const char *text,
                                           size_t bytes,
                                           int32_t special,
                                           uint32_t *tokens,
                                           size_t capacity,
                                           size_t *count);

// The text of tokens, special ones left out, with a zero byte at its end. `bytes` gets its length without it, also
// when the room is too small.
//
// There are `count` tokens; `text` has room for `capacity` bytes.
enum lacuna_status lacuna_tokenizer_decode(const struct lacuna_tokenizer *tokenizer,
                                           const uint32_t *tokens,
                                           size_t count,
                                           char *text,
                                           size_t capacity,
                                           size_t *bytes);

// A conversation as the model wants to read it, up to where its answer starts: a text to encode without `special`.
// Roles are "system", "user" and "assistant". As with lacuna_tokenizer_decode there is a zero byte at the end.
//
// There are `count` roles and contents, each of which ends with a zero byte; `text` has room for `capacity` bytes.
enum lacuna_status lacuna_tokenizer_chat(const struct lacuna_tokenizer *tokenizer,
                                         const char *const *roles,
                                         const char *const *contents,
                                         size_t count,
                                         char *text,
                                         size_t capacity,
                                         size_t *bytes);

// Whether a token ends a text: 1, or 0.
//
// `ends` has room for it.
enum lacuna_status lacuna_tokenizer_ends(const struct lacuna_tokenizer *tokenizer,
                                         uint32_t token,
                                         int32_t *ends);

// Frees a tokenizer. Texts that were made from it go on.
enum lacuna_status lacuna_tokenizer_free(struct lacuna_tokenizer *tokenizer);

// A text at its start.
//
// `out` has room for a handle.
enum lacuna_status lacuna_text_new(const struct lacuna_tokenizer *tokenizer, struct lacuna_text **out);

// The text that a token completes: often a word, sometimes nothing, for a character whose bytes are spread over
// several tokens comes with the last of them. It belongs to the text and stays until the next call on it.
//
// `piece` has room for a pointer.
enum lacuna_status lacuna_text_push(const struct lacuna_text *text,
                                    uint32_t token,
                                    const char **piece);

// Frees a text.
enum lacuna_status lacuna_text_free(struct lacuna_text *text);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* LACUNA_H */
