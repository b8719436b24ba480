package transport

// Ready is the line that a program which joins a stream to its stdout writes
// first, once it is connected. What stood before it on stdout (a login shell's
// greetings) is not part of the stream.
const Ready = "vendetta-stream-ready\n"
