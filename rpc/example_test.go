package rpc_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"time"

	"github.com/osiris-pipelines/remote/rpc"
)

// Frames carry typed payloads over any stream, and know where in it they are.
func ExampleFrameReader() {
	var stream []byte
	for _, payload := range []string{"first", "second"} {
		stream = rpc.AppendFrame(stream, rpc.FrameResponse, int64(len(stream)), []byte(payload))
	}

	frames := rpc.NewFrameReader(bytes.NewReader(stream), 0, 0)
	for {
		f, err := frames.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s at %d: %s\n", f.Type, f.Offset, f.Payload)
	}
	fmt.Println("another reader would continue at", frames.Offset())
	// Output:
	// response at 0: first
	// response at 29: second
	// another reader would continue at 59
}

// A request goes towards the worker as one frame.
func ExampleEncodeInput() {
	request := []byte(`{"id":"req_1","method":"ping"}`)
	frame, err := rpc.EncodeInput(rpc.FrameRequest, request)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(frame), "bytes")
	// Output: 54 bytes
}

// A worker appends to a journal; a host reads a tail of it, and after a cut
// another one from where it was.
func ExampleJournal() {
	dir, err := os.MkdirTemp("", "journal")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	store := dirStore(dir)

	journal, err := rpc.NewJournal(store, nil)
	if err != nil {
		log.Fatal(err)
	}
	line := rpc.Line{Time: time.Unix(0, 0), Session: "run_1", Name: "step_start", StepID: "extract"}
	for i := range 3 {
		event := line.AppendEvent(nil, map[string]any{"attempt": i})
		if err := journal.AppendData(rpc.FrameEvent, event); err != nil {
			log.Fatal(err)
		}
	}
	if err := journal.Close([]byte(`{"exit_code":0,"reason":"shutdown"}`)); err != nil {
		log.Fatal(err)
	}

	offset := int64(0)
	read := func(limit int) {
		pr, pw := io.Pipe()
		defer pr.Close() // the tail's write fails, and it ends
		go func() { pw.CloseWithError(rpc.Tail(context.Background(), store, offset, true, pw)) }()
		frames := rpc.NewFrameReader(pr, offset, 0)
		for range limit {
			f, err := frames.Next()
			if err == io.EOF {
				return
			}
			if err != nil {
				log.Fatal(err)
			}
			offset = frames.Offset()
			data, err := rpc.Data(f.Type, f.Payload)
			if err != nil {
				log.Fatal(err)
			}
			fmt.Printf("%s %s\n", f.Type, data)
		}
	}
	read(1)
	fmt.Println("connection lost at", offset)
	read(100)
	if err := journal.Ack(offset); err != nil {
		log.Fatal(err)
	}
	// Output:
	// event {"ts":"1970-01-01T00:00:00.000000Z","session":"run_1","event":"step_start","step_id":"extract","attempt":0}
	// connection lost at 155
	// event {"ts":"1970-01-01T00:00:00.000000Z","session":"run_1","event":"step_start","step_id":"extract","attempt":1}
	// event {"ts":"1970-01-01T00:00:00.000000Z","session":"run_1","event":"step_start","step_id":"extract","attempt":2}
	// close {"exit_code":0,"reason":"shutdown"}
}
