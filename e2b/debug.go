package e2b

import (
	"context"
	"log/slog"
)

// atLeastInfo raises debug records, so that E2B_DEBUG shows them with any
// default logger.
type atLeastInfo struct{ slog.Handler }

func (h *atLeastInfo) Enabled(ctx context.Context, level slog.Level) bool {
	return h.Handler.Enabled(ctx, max(level, slog.LevelInfo))
}

func (h *atLeastInfo) Handle(ctx context.Context, r slog.Record) error {
	r.Level = max(r.Level, slog.LevelInfo)
	return h.Handler.Handle(ctx, r)
}

func (h *atLeastInfo) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &atLeastInfo{h.Handler.WithAttrs(attrs)}
}

func (h *atLeastInfo) WithGroup(name string) slog.Handler {
	return &atLeastInfo{h.Handler.WithGroup(name)}
}
