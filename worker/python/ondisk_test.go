//go:build unix

package python

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/rpc"
	"github.com/osiris-pipelines/remote/worker"
)

type driverFunc func(ctx context.Context, step *worker.Step) (*worker.Result, error)

func (f driverFunc) Run(ctx context.Context, step *worker.Step) (*worker.Result, error) {
	return f(ctx, step)
}

// A table on disk is handed over where it lies; one that is cut is put together
// in one file, which goes after the step.
func TestHandoverOnDisk(t *testing.T) {
	df := numbers(t, nil, 5, 100)
	defer df.Release()
	var stream bytes.Buffer
	w := rpc.NewArrowWriter(&stream, df.Schema(), nil)
	for r := df.Reader(); r.Next(); {
		if err := w.Write(r.Record()); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	table := rpc.TableRef{Bytes: int64(stream.Len()), Rows: 500, Batches: 5}
	for i, b := range [][]byte{stream.Bytes()[:777], stream.Bytes()[777:]} {
		_, sum, err := rpc.XXH3(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		part := rpc.FileSum{Path: filepath.Join(dir, fmt.Sprint("part", i)), Size: int64(len(b)), XXH3: sum}
		if err := os.WriteFile(part.Path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		table.Parts = append(table.Parts, part)
	}

	read := func(name string) (rows int64) {
		f, err := os.Open(name)
		if err != nil {
			t.Error(err)
			return 0
		}
		defer f.Close()
		r, err := rpc.NewPlainArrowReader(f, nil, nil)
		if err != nil {
			t.Error(err)
			return 0
		}
		defer r.Release()
		for r.Next() {
			rows += r.Record().NumRows()
		}
		if r.Err() != nil {
			t.Error(r.Err())
		}
		return rows
	}
	files := t.TempDir()
	drivers := worker.NewRegistry()
	drivers.Register("make", worker.Extract, func() worker.Driver {
		return driverFunc(func(context.Context, *worker.Step) (*worker.Result, error) { return worker.Output(df.Reader()), nil })
	})
	drivers.Register("put", worker.Write, func() worker.Driver {
		return driverFunc(func(ctx context.Context, step *worker.Step) (*worker.Result, error) {
			in, err := newHandover(files).put(ctx, step)
			if err != nil {
				return nil, err
			}
			spilled, cut := in.byName["spilled"], in.byName["cut"]
			if diff := cmp.Diff(step.Inputs["spilled"].Files(), spilled); diff != "" || len(spilled) != 1 {
				t.Errorf("the table in one file (-lies +is handed over):\n%s", diff)
			}
			if diff := cmp.Diff(in.made, cut); diff != "" || len(cut) != 1 || len(step.Inputs["cut"].Files()) != 2 {
				t.Errorf("the table in two files (-made +is handed over):\n%s", diff)
			}
			for _, name := range append(spilled, cut...) {
				if rows := read(name); rows != 500 {
					t.Errorf("%s has %d rows", name, rows)
				}
			}
			in.remove()
			if _, err := os.Stat(spilled[0]); err != nil {
				t.Errorf("the worker's own file: %v", err)
			}
			if left := listDir(t, files); len(left) > 0 {
				t.Errorf("%v are left", left)
			}
			// A file that is damaged is not handed over, also if it has the size
			// that it had: the second message becomes the end of the stream.
			whole, err := os.ReadFile(spilled[0])
			if err != nil {
				return nil, err
			}
			mark := []byte("\xff\xff\xff\xff")
			short := bytes.Clone(whole)
			copy(short[bytes.LastIndex(short[:len(short)/2], mark):], "\xff\xff\xff\xff\x00\x00\x00\x00")
			for name, b := range map[string][]byte{"was cut": whole[:1000], "ends early": short} {
				if err := os.WriteFile(spilled[0], b, 0o600); err != nil {
					return nil, err
				}
				if _, err := newHandover(files).put(ctx, step); err == nil {
					t.Errorf("a file that %s is handed over", name)
				}
			}
			return nil, nil
		})
	})
	at, err := worker.New(worker.Options{Dir: t.TempDir(), Drivers: drivers, MemoryBudget: 1})
	if err != nil {
		t.Fatal(err)
	}
	in, stdin := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		at.Run(context.Background(), in)
	}()
	defer func() { stdin.Close(); <-done }()
	hello, err := json.Marshal(rpc.Handshake{MinVersion: rpc.Version, MaxVersion: rpc.Version, SessionID: "s", Tables: map[string]rpc.TableRef{"orders": table}})
	if err != nil {
		t.Fatal(err)
	}
	if resp := at.HandleRPC(t.Context(), &rpc.Request{ID: "1", Method: rpc.MethodHandshake, Params: hello}); resp.Error != nil {
		t.Fatal(resp.Error)
	}
	for _, step := range []rpc.ExecuteStep{
		{StepID: "a", Driver: "make", Keep: true},
		{StepID: "b", Driver: "put", Inputs: map[string]rpc.InputRef{"spilled": {FromStep: "a"}, "cut": {Table: "orders"}}},
	} {
		if _, err := at.ExecuteStep(t.Context(), &step); err != nil {
			t.Fatal(err)
		}
	}
}
