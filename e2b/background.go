package e2b

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
)

// background owns what outlives the call that started it: creates whose
// answer nobody waited for.
type background struct {
	ctx    context.Context // ends when nobody waits any more
	cancel context.CancelFunc

	mu     sync.Mutex
	held   int
	closed bool
	done   chan struct{} // closed once closed and nothing is held
	left   []string      // what could not be cleared up
}

func newBackground() *background {
	b := &background{done: make(chan struct{})}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	return b
}

// hold keeps close from returning until release is called.
func (b *background) hold() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return fmt.Errorf("the client is closed: %w", net.ErrClosed)
	}
	b.held++
	return nil
}

func (b *background) release() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.held--
	b.settle()
}

// settle is called with the lock held.
func (b *background) settle() {
	select {
	case <-b.done:
	default:
		if b.closed && b.held == 0 {
			close(b.done)
		}
	}
}

// leave remembers what a person has to look at.
func (b *background) leave(what string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left = append(b.left, what)
}

// close waits until nothing is held, and no longer than ctx lets it: then it
// stops what is left.
func (b *background) close(ctx context.Context) error {
	b.mu.Lock()
	b.closed = true
	b.settle()
	b.mu.Unlock()
	select {
	case <-b.done:
	case <-ctx.Done():
		b.cancel()
		<-b.done
	}
	b.cancel()
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.left) == 0 {
		return nil
	}
	return errors.New("sandboxes may have been left behind, and end by their own timeout; " + strings.Join(b.left, "; "))
}
