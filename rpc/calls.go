package rpc

import "sync"

// Calls is the worker's book of requests. It is what makes a request that is
// sent twice execute once: answers are kept until the host says it has them.
// The zero value is ready; all methods may be called concurrently.
type Calls struct {
	mu       sync.Mutex
	answered int64               // everything up to here is forgotten
	open     map[int64]*Response // nil while running
}

// Verdict says what to do with a request that has arrived.
type Verdict int

// The verdicts.
const (
	Execute Verdict = iota // it is new
	Repeat                 // it was answered: send the answer again
	Ignore                 // it is running, or the host has its answer
)

// Begin books the arrival of a request.
func (c *Calls) Begin(r *Request) (Verdict, *Response, error) {
	n, err := RequestNumber(r.ID)
	if err != nil {
		return Ignore, nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.Answered > c.answered {
		c.answered = r.Answered
		for k, resp := range c.open {
			if k <= c.answered && resp != nil {
				delete(c.open, k)
			}
		}
	}
	if resp, known := c.open[n]; known {
		if resp == nil {
			return Ignore, nil, nil
		}
		return Repeat, resp, nil
	}
	if n <= c.answered {
		return Ignore, nil, nil
	}
	if c.open == nil {
		c.open = make(map[int64]*Response)
	}
	c.open[n] = nil
	return Execute, nil, nil
}

// End books the answer of a request that Begin said to execute.
func (c *Calls) End(resp *Response) {
	n, err := RequestNumber(resp.ID)
	if err != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if n <= c.answered {
		delete(c.open, n)
		return
	}
	if _, known := c.open[n]; known {
		c.open[n] = resp
	}
}

// Len returns how many requests are in the book.
func (c *Calls) Len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.open)
}
