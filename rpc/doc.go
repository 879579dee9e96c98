// Package rpc is the wire between a host and its worker: frames, the messages
// in them, the journal that makes delivery exact, and Arrow payloads.
//
// It takes readers and writers; it starts no process and opens no connection.
// docs/protocol.md describes the same bytes for those who write a worker in
// another language.
//
// # Frames
//
// Everything travels in frames: a 24-byte header with type, length, offset and
// checksum, then the payload ([Frame], [AppendFrame], [FrameReader]). Frames
// towards the worker are at most [MaxInputFrame] bytes, so that a transport
// that delivers whole messages delivers whole frames.
//
// # Messages
//
// Payloads are JSON, except those of Arrow frames. A [Request] is answered by
// one [Response] with its id. Requests also carry the highest id below which
// all answers have arrived, so that the worker can forget them: a request sent
// twice is executed once and answered twice ([Calls] keeps that book).
// Events and metrics carry, byte for byte, the line that the session's
// events.jsonl and metrics.jsonl keep ([Line]).
//
// # Journal
//
// The worker writes nothing to its standard output. It appends frames to a
// [Journal], whose frame offsets are positions; [Tail] copies the journal from
// any such offset and follows it. A host that loses its connection starts
// another tail from the offset it has reached, and misses nothing and sees
// nothing twice.
//
// # Arrow
//
// [NewArrowReader] is the only way bytes from a sandbox become Arrow records:
// it checks sizes before Arrow allocates, and contents before anybody reads
// them.
package rpc
