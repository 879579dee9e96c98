package mock

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/osiris-pipelines/remote"
)

// Provider makes sandboxes and remembers them. Its method OpenSandbox is a
// remote.OpenSandbox.
type Provider struct {
	opts Options
	log  callLog

	mu        sync.Mutex
	sandboxes []*Sandbox
}

var _ remote.OpenSandbox = (*Provider)(nil).OpenSandbox

// NewProvider returns a provider whose sandboxes are all made with opts.
func NewProvider(opts *Options) *Provider {
	p := &Provider{}
	if opts != nil {
		p.opts = *opts
	}
	return p
}

// OpenSandbox makes a sandbox with the next ID: "mock-1", "mock-2" and so on.
// Where cfg asks for no CPU or memory it has 2 cores and 0.5 GB. A fault of
// [FailLate] leaves a sandbox behind.
func (p *Provider) OpenSandbox(ctx context.Context, cfg remote.SandboxConfig) (remote.Sandbox, error) {
	rec, err := p.log.begin(ctx, Call{Op: OpOpen}, p.opts.Fault, func() error { return nil })
	var s *Sandbox
	if err == nil {
		s = p.open(cfg)
		rec.update(func(c *Call) { c.Sandbox, c.TTL = s.info.ID, s.TTL() })
	}
	if err = rec.end(err); err != nil {
		return nil, fmt.Errorf("mock: open sandbox: %w", err)
	}
	return s, nil
}

func (p *Provider) open(cfg remote.SandboxConfig) *Sandbox {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := newSandbox(&p.opts, fmt.Sprintf("mock-%d", len(p.sandboxes)+1), cfg, &p.log)
	p.sandboxes = append(p.sandboxes, s)
	return s
}

// Sandboxes returns all sandboxes it made, in order.
func (p *Provider) Sandboxes() []*Sandbox {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.sandboxes)
}

// Alive returns those that were neither killed nor have expired.
func (p *Provider) Alive() []*Sandbox {
	return slices.DeleteFunc(p.Sandboxes(), func(s *Sandbox) bool { return !s.Alive() })
}

// Calls returns the calls to the provider and all its sandboxes, in the order
// in which they began.
func (p *Provider) Calls() []Call { return p.log.list("") }
