package worker

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/osiris-pipelines/remote/rpc"
)

const (
	// tailFile is the file in a run's folder that names the last tail that was
	// started.
	tailFile = "tail"
	// tailCheck is how often a tail looks whether it is still that one.
	tailCheck = time.Second
	// tailIdle is how long a tail lives that copies nothing. A worker that
	// lives writes heartbeats, so either it is dead or nobody reads; a host
	// that is still there starts another.
	tailIdle = 5 * time.Minute
)

// The exit codes of a tail that cannot read on, see [Program.Run].
const (
	ExitTrimmed = 4 // the journal no longer has the offset
	ExitCorrupt = 5 // what is at the offset is no frame
)

// tail copies the journal. Its host may be gone without its input being closed:
// a sandbox's daemon keeps that open, and goes on reading for nobody. So a tail
// also ends when another one was started, and when nothing went on for long.
func (p Program) tail(ctx context.Context, fsys FS, dir string, from int64, follow bool, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if follow {
		// A tail whose host is gone has nobody to read it.
		go func() {
			io.Copy(io.Discard, stdin)
			cancel()
		}()
		w := &progressWriter{w: stdout}
		w.last.Store(time.Now().UnixNano())
		stdout = w
		orphaned := make(chan struct{})
		go func() {
			defer close(orphaned)
			if why := watchTail(ctx, fsys, dir, w); why != "" {
				fmt.Fprintln(stderr, "worker: tail:", why)
				if p.ownProcess {
					os.Exit(0) // it may be writing to somebody who does not read
				}
				cancel()
			}
		}()
		defer func() {
			cancel()
			<-orphaned
		}()
	}
	err := rpc.Tail(ctx, journalStore{fsys, filepath.Join(dir, journalDir)}, from, follow, stdout)
	if err == nil || errors.Is(err, context.Canceled) {
		return 0
	}
	fmt.Fprintln(stderr, "worker: tail:", err)
	switch {
	case errors.Is(err, rpc.ErrJournalTrimmed):
		return ExitTrimmed
	case errors.Is(err, rpc.ErrFrameCorrupt), errors.Is(err, rpc.ErrFrameTooLarge), errors.Is(err, rpc.ErrFrameOffset):
		return ExitCorrupt
	}
	return 1
}

// watchTail waits until the tail has to end, and returns why; it is empty when
// ctx ended first.
func watchTail(ctx context.Context, fsys FS, dir string, w *progressWriter) string {
	id := fmt.Sprintf("%d %s\n", os.Getpid(), rand.Text())
	claimed := claimTail(fsys, dir, id) == nil // else the disk is full: then it is not known
	tick := time.NewTicker(tailCheck)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ""
		case now := <-tick.C:
			if claimed && !isTail(fsys, dir, id) {
				return "another one was started"
			}
			if idle := now.Sub(time.Unix(0, w.last.Load())); idle > tailIdle {
				return fmt.Sprintf("nothing was copied for %s", tailIdle)
			}
		}
	}
}

// claimTail makes a tail the one of its run.
func claimTail(fsys FS, dir, id string) error {
	if err := fsys.MkdirAll(dir); err != nil { // the worker may still be starting
		return err
	}
	name := filepath.Join(dir, tailFile)
	part := name + "." + rand.Text()
	f, err := fsys.Create(part)
	if err != nil {
		return err
	}
	_, err = io.WriteString(f, id)
	if err = errors.Join(err, f.Close()); err == nil {
		err = fsys.Rename(part, name)
	}
	if err != nil {
		_ = fsys.RemoveAll(part) // which goes with the run's folder
	}
	return err
}

// isTail reports whether a tail is still the one of its run: also when that
// cannot be told.
func isTail(fsys FS, dir, id string) bool {
	f, err := openRegular(fsys, filepath.Join(dir, tailFile))
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist) // the run's folder is gone
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, int64(len(id))+1))
	return err != nil || string(b) == id
}

// progressWriter remembers when something was last taken.
type progressWriter struct {
	w    io.Writer
	last atomic.Int64 // in Unix nanoseconds
}

func (p *progressWriter) Write(b []byte) (int, error) {
	n, err := p.w.Write(b)
	if n > 0 {
		p.last.Store(time.Now().UnixNano())
	}
	return n, err
}
