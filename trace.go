package remote

import (
	"cmp"
	"encoding/json"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/osiris-pipelines/remote/rpc"
	"github.com/osiris-pipelines/remote/secrets"
)

// tracer logs every frame between host and worker, for whoever looks for a
// fault in the protocol. It is nil unless OSIRIS_RPC_DEBUG is "true".
type tracer struct {
	session *session
	hide    *strings.Replacer
}

// minHidden is how long a value is that is hidden wherever it stands: hiding
// shorter ones would leave no text to read.
const minHidden = 4

// newTracer returns a tracer that hides the values of env, and what stands
// under secret keys.
func newTracer(s *session, env map[string]string) *tracer {
	if os.Getenv("OSIRIS_RPC_DEBUG") != "true" {
		return nil
	}
	hidden := make(map[string]bool)
	for _, v := range env {
		// As it is, and as it stands in a JSON string, and in one in another.
		for range 3 {
			if len(v) >= minHidden {
				hidden[v] = true
			}
			b, err := json.Marshal(v)
			if err != nil {
				break
			}
			v = string(b[1 : len(b)-1])
		}
	}
	// The longest first: a replacer takes the first that fits.
	values := slices.SortedFunc(maps.Keys(hidden), func(a, b string) int {
		return cmp.Or(cmp.Compare(len(b), len(a)), strings.Compare(a, b))
	})
	var pairs []string
	for _, v := range values {
		pairs = append(pairs, v, secrets.Masked)
	}
	return &tracer{session: s, hide: strings.NewReplacer(pairs...)}
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
	if params, ok := message["params"].(map[string]any); ok && message["method"] == rpc.MethodEnvironment {
		params["env"] = names(params["env"])
	}
	b, err := json.Marshal(secrets.Mask(message))
	if err != nil {
		return "(unprintable)"
	}
	text := t.hide.Replace(string(b))
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + " ..."
	}
	return text
}

// names returns the keys of an object, sorted.
func names(v any) []string {
	object, _ := v.(map[string]any)
	list := []string{}
	for k := range object {
		list = append(list, k)
	}
	slices.Sort(list)
	return list
}
