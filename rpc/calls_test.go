package rpc_test

import (
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/osiris-pipelines/remote/rpc"
)

func request(n, answered int64) *rpc.Request {
	return &rpc.Request{ID: rpc.RequestID(n), Method: rpc.MethodPing, Answered: answered}
}

func TestCalls(t *testing.T) {
	var c rpc.Calls
	begin := func(n, answered int64, want rpc.Verdict) {
		t.Helper()
		got, resp, err := c.Begin(request(n, answered))
		if err != nil || got != want {
			t.Fatalf("request %d, answered %d: verdict %d, %v; want %d", n, answered, got, err, want)
		}
		if (resp != nil) != (got == rpc.Repeat) || resp != nil && resp.ID != rpc.RequestID(n) {
			t.Fatalf("request %d: response %+v with verdict %d", n, resp, got)
		}
	}
	end := func(n int64) { c.End(&rpc.Response{ID: rpc.RequestID(n), Result: []byte("{}")}) }
	length := func(want int) {
		t.Helper()
		if got := c.Len(); got != want {
			t.Fatalf("Len() = %d, want %d", got, want)
		}
	}

	begin(1, 0, rpc.Execute)
	begin(1, 0, rpc.Ignore) // running
	end(1)
	begin(1, 0, rpc.Repeat)
	begin(1, 0, rpc.Repeat)
	begin(3, 0, rpc.Execute) // before 2, which is late
	begin(2, 1, rpc.Execute)
	begin(1, 0, rpc.Ignore) // the host had its answer already
	length(2)
	end(3)
	begin(3, 1, rpc.Repeat)
	begin(5, 3, rpc.Execute) // 2 runs on, although the host says it has its answer
	length(2)
	begin(2, 0, rpc.Ignore)
	begin(3, 0, rpc.Ignore)
	end(2)
	length(1)
	begin(2, 0, rpc.Ignore)
	begin(4, 2, rpc.Execute)
	end(4)
	end(5)
	end(5)
	begin(5, 0, rpc.Repeat)
	begin(6, 6, rpc.Ignore) // has its answer before it came: nobody waits for it
	length(0)
	end(7) // was never begun
	begin(7, 0, rpc.Execute)
	length(1)

	for _, id := range []string{"", "req_", "req_0", "req_-1", "req_01", "req_+1", "1", "req_9223372036854775808", "REQ_1"} {
		if v, _, err := c.Begin(&rpc.Request{ID: id}); !errors.Is(err, rpc.ErrMessage) || v != rpc.Ignore {
			t.Errorf("id %q: verdict %d, %v", id, v, err)
		}
		c.End(&rpc.Response{ID: id})
	}
	length(1)
}

// A million calls, with duplicates and disorder, execute once each, and the
// book stays as small as what is open.
func TestCallsBounded(t *testing.T) {
	t.Parallel()
	const window = 16
	total := int64(stress(200_000, 1_000_000))
	r := newRand(t)
	var c rpc.Calls
	executed := make([]bool, total+1)
	answered := int64(0) // the host has all answers up to here
	longest := 0
	order := make([]int64, 0, 2*window)
	for answered < total {
		// What is in flight, in any order, some of it twice.
		last := min(answered+window, total)
		order = order[:0]
		for n := answered + 1; n <= last; n++ {
			order = append(order, n)
			if r.IntN(2) == 0 {
				order = append(order, n)
			}
		}
		r.Shuffle(len(order), func(i, k int) { order[i], order[k] = order[k], order[i] })
		for _, n := range order {
			req := rpc.Request{ID: rpc.RequestID(n), Answered: max(answered-r.Int64N(50), 0)}
			verdict, repeated, err := c.Begin(&req)
			if err != nil {
				t.Fatal(err)
			}
			switch verdict {
			case rpc.Execute:
				if executed[n] {
					t.Fatalf("request %d was executed twice", n)
				}
				executed[n] = true
				c.End(&rpc.Response{ID: req.ID})
			case rpc.Repeat:
				if repeated.ID != req.ID {
					t.Fatalf("request %d got the answer to %s", n, repeated.ID)
				}
			}
		}
		longest = max(longest, c.Len())
		answered = last
	}
	// Since the host lags by up to 50.
	if longest > 4*window+50 {
		t.Errorf("the book had %d entries", longest)
	}
	for n := int64(1); n <= total; n++ {
		if !executed[n] {
			t.Fatalf("request %d was not executed", n)
		}
	}
}

func TestCallsConcurrent(t *testing.T) {
	const total, senders = 5000, 4
	var c rpc.Calls
	var executed [total + 1]atomic.Int32
	var wg sync.WaitGroup
	for range senders { // each sends everything
		r := rand.New(rand.NewPCG(rand.Uint64(), 0))
		wg.Go(func() {
			for _, k := range r.Perm(total) {
				req := request(int64(k+1), 0)
				if v, _, err := c.Begin(req); err != nil {
					t.Error(err)
				} else if v == rpc.Execute {
					executed[k+1].Add(1)
					c.End(&rpc.Response{ID: req.ID})
				}
			}
		})
	}
	wg.Wait()
	for n := 1; n <= total; n++ {
		if k := executed[n].Load(); k != 1 {
			t.Fatalf("request %d was executed %d times", n, k)
		}
	}
	if _, _, err := c.Begin(request(total+1, total)); err != nil || c.Len() != 1 {
		t.Errorf("%d entries after all were answered, %v", c.Len(), err)
	}
}
