package remote

import (
	"encoding/json"
	"log/slog"
	"os"
	"strings"

	"github.com/osiris-pipelines/remote/rpc"
	"github.com/osiris-pipelines/remote/secrets"
)

// tracer logs every frame between host and worker, for whoever looks for a
// fault in the protocol. It is nil unless OSIRIS_RPC_DEBUG is "true".
type tracer struct{ session *session }

// newTracer returns a tracer that hides what the session does, and what stands
// under secret keys.
func newTracer(s *session) *tracer {
	if os.Getenv("OSIRIS_RPC_DEBUG") != "true" {
		return nil
	}
	return &tracer{session: s}
}

// frame logs one frame; direction is "to worker" or "from worker".
func (t *tracer) frame(direction string, f rpc.Frame) {
	if t == nil {
		return
	}
	t.session.logf(slog.LevelDebug, "rpc %s: %s at %d, %d bytes: %s", direction, f.Type, f.Offset, len(f.Payload), t.text(f))
}

// text is a frame's payload without what may be secret.
func (t *tracer) text(f rpc.Frame) string {
	const most = 2000 // bytes of a line
	var message map[string]any
	if f.Type == rpc.FrameArrow || json.Unmarshal(f.Payload, &message) != nil {
		return "(binary)"
	}
	if params, ok := message["params"].(map[string]any); ok && message["method"] == rpc.MethodSecrets {
		params["data"] = "(sealed)"
	}
	b, err := json.Marshal(secrets.Mask(message))
	if err != nil {
		return "(unprintable)"
	}
	text := string(t.session.redact.JSON(b)) // before it is cut
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + " ..."
	}
	return text
}
