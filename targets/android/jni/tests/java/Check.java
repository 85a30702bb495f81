import dev.lacuna.LacunaException;
import dev.lacuna.Native;
import java.io.DataInputStream;
import java.io.FileInputStream;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.Arrays;

/** What an app does with the library, and what it must not: prints what came of it, a line each. */
public final class Check {
    public static void main(String[] args) throws Exception {
        long model = Native.open(args[0]);
        long session = Native.session(model, 1);
        System.out.println(String.join(",", Native.inputNames(session))
            + " " + Arrays.toString(Native.inputShape(session, 0)) + " -> "
            + String.join(",", Native.outputNames(session))
            + " " + Arrays.toString(Native.outputShape(session, 0)));
        float[] input = floats(args[1]);
        float[][] outputs = {new float[(int) Native.outputShape(session, 0)[1]]};
        for (int i = 0; i < 3; i++) {
            Native.run(session, new float[][] {input}, outputs);
        }
        System.out.println(Arrays.toString(outputs[0]));

        long text = Native.open(args[2]);
        long tokenizer = Native.tokenizer(text);
        long decoder = Native.decoder(text, 1, 64);
        int[] prompt = Native.encode(tokenizer, "hello wörld");
        int[] next = new int[8];
        float[] logits = Native.prefill(decoder, prompt);
        for (int i = 0; i < next.length; i++) {
            next[i] = best(logits);
            logits = Native.prefill(decoder, new int[] {next[i]});
        }
        System.out.println(Arrays.toString(prompt) + " " + Arrays.toString(next));
        System.out.println(Native.decode(tokenizer, next));

        refused(() -> Native.open("absent.safetensors"));
        refused(() -> Native.session(session, 1));
        refused(() -> Native.session(model, -1));
        refused(() -> Native.run(session, new float[][] {new float[3]}, outputs));
        refused(() -> Native.run(session, new float[][] {null}, outputs));
        refused(() -> Native.run(session, new float[][] {input}, new float[][] {new float[3]}));
        refused(() -> Native.prefill(decoder, new int[] {-1}));
        refused(() -> Native.inputShape(session, 9));
        refused(() -> Native.decoder(model, 1, 0));
        Native.close(session);
        Native.close(session);
        refused(() -> Native.outputNames(session));
        // Null, which no app should give, ends in an exception too.
        refused(() -> Native.open(null));
        refused(() -> Native.run(decoder, null, null));

        // Eight threads, each with a session of its own over one model.
        Thread[] threads = new Thread[8];
        float[][] found = new float[threads.length][];
        for (int i = 0; i < threads.length; i++) {
            int at = i;
            threads[i] = new Thread(() -> {
                long own = Native.session(model, 1);
                float[][] results = {new float[outputs[0].length]};
                for (int run = 0; run < 20; run++) {
                    Native.run(own, new float[][] {input}, results);
                }
                Native.close(own);
                found[at] = results[0];
            });
            threads[i].start();
        }
        for (Thread thread : threads) {
            thread.join();
        }
        boolean equal = Arrays.stream(found).allMatch(f -> Arrays.equals(f, outputs[0]));
        System.out.println("8 threads, " + (equal ? "equal" : "different"));
    }

    private static void refused(Runnable call) {
        try {
            call.run();
            System.out.println("not refused");
        } catch (LacunaException e) {
            System.out.println("refused: " + e.getMessage());
        }
    }

    private static int best(float[] values) {
        int best = 0;
        for (int i = 1; i < values.length; i++) {
            if (values[i] > values[best]) {
                best = i;
            }
        }
        return best;
    }

    private static float[] floats(String path) throws Exception {
        try (DataInputStream in = new DataInputStream(new FileInputStream(path))) {
            ByteBuffer bytes = ByteBuffer.wrap(in.readAllBytes()).order(ByteOrder.LITTLE_ENDIAN);
            float[] values = new float[bytes.remaining() / 4];
            bytes.asFloatBuffer().get(values);
            return values;
        }
    }
}
