package dev.lacuna;

/** What a call failed with, naming the file, the tensor and the value. */
public final class LacunaException extends RuntimeException {
    private static final long serialVersionUID = 1L;

    public LacunaException(String message) {
        super(message);
    }
}
