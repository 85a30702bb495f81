package dev.lacuna

/** A model: checked, mapped, its weights shared by every session and decoder over it. */
class Model private constructor(internal val handle: Long) : AutoCloseable {
    /** Plans a run. With one thread it stays on the caller's; 0 takes every core. */
    fun session(threads: Int = 1): Session = Session(Native.session(handle, threads))

    /** Plans a language model with [capacity] positions; 0 takes the model's context. */
    fun decoder(threads: Int = 1, capacity: Int = 0): Decoder =
        Decoder(Native.decoder(handle, threads, capacity), Native.tokenizer(handle))

    override fun close() = Native.close(handle)

    companion object {
        /** Opens a file. */
        fun open(path: String): Model = Model(Native.open(path))

        /** Opens a part of a file, as `AssetManager.openFd` gives it for an asset that is stored uncompressed. */
        fun open(descriptor: Int, offset: Long, length: Long): Model =
            Model(Native.openPart(descriptor, offset, length))
    }
}

/** One input or output. */
data class Tensor(val name: String, val shape: List<Long>) {
    val elements: Int get() = shape.fold(1L, Long::times).toInt()
}

/** A planned model; one thread at a time may be in it. */
class Session internal constructor(private val handle: Long) : AutoCloseable {
    val inputs: List<Tensor> =
        Native.inputNames(handle).mapIndexed { i, name -> Tensor(name, Native.inputShape(handle, i).toList()) }
    val outputs: List<Tensor> =
        Native.outputNames(handle).mapIndexed { i, name -> Tensor(name, Native.outputShape(handle, i).toList()) }

    /** Runs: an array for each input; an array for each output comes back. */
    fun run(vararg inputs: FloatArray): List<FloatArray> {
        val results = Array(outputs.size) { FloatArray(outputs[it].elements) }
        Native.run(handle, arrayOf(*inputs), results)
        return results.toList()
    }

    override fun close() = Native.close(handle)
}

/** A language model with its tokenizer and the sequence so far. */
class Decoder internal constructor(private val handle: Long, private val tokenizer: Long) : AutoCloseable {
    fun encode(text: String): IntArray = Native.encode(tokenizer, text)

    fun decode(tokens: IntArray): String = Native.decode(tokenizer, tokens)

    /** Feeds tokens after those before them; the logits after the last. */
    fun feed(tokens: IntArray): FloatArray = Native.prefill(handle, tokens)

    /** Begins a new sequence. */
    fun reset() = Native.reset(handle)

    /** Continues [prompt] by up to [limit] tokens, each the likeliest. */
    fun generate(prompt: String, limit: Int): String {
        val tokens = mutableListOf<Int>()
        var logits = feed(encode(prompt))
        while (tokens.size < limit) {
            val next = logits.indices.maxByOrNull { logits[it] } ?: break
            if (Native.ends(tokenizer, next)) break
            tokens += next
            if (tokens.size < limit) logits = feed(intArrayOf(next))
        }
        return decode(tokens.toIntArray())
    }

    override fun close() {
        Native.close(handle)
        Native.close(tokenizer)
    }
}
