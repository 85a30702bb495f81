package dev.lacuna;

/**
 * The calls of the native library as they are. Handles are numbers; a closed one is answered with a
 * {@link LacunaException}. Apps use {@code Model}, {@code Session} and {@code Decoder}.
 */
public final class Native {
    static {
        System.loadLibrary("lacuna_jni");
    }

    private Native() {}

    /** Maps and checks a model file. */
    public static native long open(String path);

    /** Maps a part of an open file, such as an asset that the package stores uncompressed. The descriptor stays open. */
    public static native long openPart(int descriptor, long offset, long length);

    /** Closes a handle of any kind; closing it again does nothing. */
    public static native void close(long handle);

    /** Plans a model for this device. With one thread a run stays on the caller's; 0 takes every core. */
    public static native long session(long model, int threads);

    public static native String[] inputNames(long session);

    public static native long[] inputShape(long session, int index);

    public static native String[] outputNames(long session);

    public static native long[] outputShape(long session, int index);

    /** Runs: one array for each input, and one to be filled for each output, in the order of their names. */
    public static native void run(long session, float[][] inputs, float[][] outputs);

    /** Plans a language model that keeps keys and values of so many positions; 0 takes the model's context. */
    public static native long decoder(long model, int threads, int capacity);

    /** Feeds tokens, after those before them; the logits after the last. */
    public static native float[] prefill(long decoder, int[] tokens);

    /** Begins a new sequence. */
    public static native void reset(long decoder);

    /** The tokenizer that travels in the model's file. */
    public static native long tokenizer(long model);

    public static native int[] encode(long tokenizer, String text);

    public static native String decode(long tokenizer, int[] tokens);

    /** Whether a generation stops at this token. */
    public static native boolean ends(long tokenizer, int token);
}
