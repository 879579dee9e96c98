package worker

import (
	"context"
	"log/slog"
	"slices"

	"github.com/osiris-pipelines/remote/rpc"
)

// logHandler sends a step's log records to the host.
type logHandler struct {
	w      *ProxyWorker
	stepID string
	attrs  []slog.Attr // with their groups' names as prefixes
	group  string      // prefix of further attributes, with its dot
}

func (h *logHandler) Enabled(context.Context, slog.Level) bool { return true }

func (h *logHandler) Handle(_ context.Context, r slog.Record) error {
	l := rpc.Log{Level: r.Level.String(), Message: r.Message, StepID: h.stepID}
	add := func(a slog.Attr) {
		if l.Attrs == nil {
			l.Attrs = make(map[string]any)
		}
		l.Attrs[a.Key] = a.Value.Resolve().String()
	}
	for _, a := range h.attrs {
		add(a)
	}
	r.Attrs(func(a slog.Attr) bool {
		add(slog.Attr{Key: h.group + a.Key, Value: a.Value})
		return true
	})
	h.w.log(l, false)
	return nil
}

func (h *logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	c.attrs = slices.Clone(h.attrs)
	for _, a := range attrs {
		c.attrs = append(c.attrs, slog.Attr{Key: h.group + a.Key, Value: a.Value})
	}
	return &c
}

func (h *logHandler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	c := *h
	c.group += name + "."
	return &c
}
