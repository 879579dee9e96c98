package mock

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

// Op names what was called.
type Op string

// The operations that are recorded and may be made to fail.
const (
	OpOpen     Op = "open"     // Provider.OpenSandbox
	OpUpload   Op = "upload"   // Sandbox.Upload
	OpDownload Op = "download" // Sandbox.Download and its reader
	OpSize     Op = "size"     // Sandbox.Size
	OpList     Op = "list"     // Sandbox.List
	OpStart    Op = "start"    // Sandbox.Start
	OpState    Op = "state"    // Sandbox.State
	OpExtend   Op = "extend"   // Sandbox.Extend
	OpKill     Op = "kill"     // Sandbox.Kill
	OpStdin    Op = "stdin"    // one Write to Process.Stdin
	OpSignal   Op = "signal"   // Process.Signal
	OpWait     Op = "wait"     // Process.Wait
)

// Call is one recorded use of a sandbox or provider, through the methods that
// implement the interfaces of package remote. Fields that an operation does
// not have are zero.
type Call struct {
	Sandbox string // its ID; empty for an open that made none
	Op      Op
	Path    string        // of the file, or of the started program
	Args    []string      // of the started program; of OpSignal, the signal's name
	PID     int           // of the process
	Bytes   int64         // that went through, so far
	TTL     time.Duration // of OpExtend and OpOpen
	Err     error         // nil also while the call runs
}

// FailAfter returns an error for Options.Fault that lets n bytes of an upload
// or download through before the call fails with err. Other operations fail
// at once.
func FailAfter(n int64, err error) error { return &timedError{err: err, bytes: n} }

// FailLate returns an error for Options.Fault that lets the call take its
// whole effect and then makes it fail with err, as when the answer is lost on
// its way.
func FailLate(err error) error { return &timedError{err: err, late: true} }

// timedError is an error whose time has not come.
type timedError struct {
	err   error
	bytes int64
	late  bool
}

func (e *timedError) Error() string { return e.err.Error() }
func (e *timedError) Unwrap() error { return e.err }

// callLog is the calls of a provider and its sandboxes, in order.
type callLog struct {
	mu    sync.Mutex
	calls []*Call
}

// list returns the calls of one sandbox, or all when id is empty.
func (l *callLog) list(id string) []Call {
	l.mu.Lock()
	defer l.mu.Unlock()
	var list []Call
	for _, c := range l.calls {
		if id == "" || c.Sandbox == id {
			call := *c
			call.Args = slices.Clone(c.Args)
			list = append(list, call)
		}
	}
	return list
}

// record is a call under way.
type record struct {
	log  *callLog
	call *Call

	failAfter int64 // bytes; negative means never
	after     error // what to fail with then
	late      error // what to fail with in the end
}

// begin records a call and asks fault about it. check says first whether it
// can be made at all. The record is never nil.
func (l *callLog) begin(ctx context.Context, call Call, fault Fault, check func() error) (*record, error) {
	call.Args = slices.Clone(call.Args)
	r := &record{log: l, call: &call, failAfter: -1}
	l.mu.Lock()
	l.calls = append(l.calls, r.call)
	seen := call
	l.mu.Unlock()

	err := ctx.Err()
	if err == nil {
		err = check()
	}
	if err == nil && fault != nil {
		if err = r.schedule(fault(ctx, seen)); err == nil {
			err = check() // fault may have taken its time
		}
	}
	return r, err
}

// schedule returns the fault that is due at once.
func (r *record) schedule(err error) error {
	var timed *timedError
	switch {
	case !errors.As(err, &timed):
		return err
	case timed.late:
		r.late = timed.err
	case r.call.Op == OpUpload || r.call.Op == OpDownload:
		r.failAfter, r.after = timed.bytes, timed.err
	default:
		return timed.err
	}
	return nil
}

// update changes the recorded call.
func (r *record) update(f func(c *Call)) {
	r.log.mu.Lock()
	defer r.log.mu.Unlock()
	f(r.call)
}

// end records the call's outcome and returns it.
func (r *record) end(err error) error {
	if err == nil {
		err = r.late
	}
	if err != nil {
		r.update(func(c *Call) { c.Err = err })
	}
	return err
}

// allow returns how many of n bytes may go through before the fault, and
// counts them.
func (r *record) allow(n int) (int, error) {
	r.log.mu.Lock()
	defer r.log.mu.Unlock()
	var err error
	if r.failAfter >= 0 && int64(n) > r.failAfter-r.call.Bytes {
		n, err = int(r.failAfter-r.call.Bytes), r.after
	}
	r.call.Bytes += int64(n)
	return n, err
}
