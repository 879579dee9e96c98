package worker

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"

	"github.com/osiris-pipelines/remote/rpc"
	"github.com/osiris-pipelines/remote/secrets"
)

// resolvedConnection is the key under which a driver finds the fields of its
// connection.
const resolvedConnection = "resolved_connection"

// workerSecrets is what a worker knows and never writes anywhere.
type workerSecrets struct {
	key    *rpc.SealKey
	redact *secrets.Redactor

	taking sync.Mutex // held while a part is taken: to make many values known takes seconds, in which others want the worker's lock
	parts  int        // of the message that is arriving
	data   []byte     // and their bytes

	env         map[string]string // for the drivers
	connections map[string]json.RawMessage
}

func newWorkerSecrets() (*workerSecrets, error) {
	key, err := rpc.NewSealKey()
	return &workerSecrets{
		key: key, redact: secrets.NewRedactor(),
		env: make(map[string]string), connections: make(map[string]json.RawMessage),
	}, err
}

// take collects the parts of a message, and opens it when it is complete: else
// the message is nil.
func (c *workerSecrets) take(session string, p *rpc.Sealed) (*rpc.Secrets, error) {
	if p.Part == 0 {
		c.parts, c.data = 0, nil
	}
	if p.Part != c.parts || len(p.Data) == 0 || len(c.data)+len(p.Data) > rpc.MaxSealed {
		return nil, fmt.Errorf("part %d of the secrets, of %d bytes, does not follow %d parts of %d bytes", p.Part, len(p.Data), c.parts, len(c.data))
	}
	c.parts++
	c.data = append(c.data, p.Data...)
	if p.More {
		return nil, nil
	}
	data := c.data
	c.parts, c.data = 0, nil
	return c.key.Open(session, data)
}

// secrets takes a part of what the drivers need and nobody else may know.
func (w *ProxyWorker) secrets(p *rpc.Sealed) error {
	w.known.taking.Lock()
	defer w.known.taking.Unlock()
	m, err := w.known.take(w.sessionID(), p)
	if err != nil {
		return &rpc.Error{Code: rpc.CodeInvalidParams, Message: err.Error()}
	}
	if m == nil {
		return nil
	}
	// Before anything can say them.
	w.known.redact.Add(m.Redact...)
	if w.opts.share != nil {
		if err := w.opts.share(m.Redact); err != nil {
			return fmt.Errorf("tell the supervisor what to redact: %w", err)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, k := range slices.Sorted(maps.Keys(m.Env)) {
		if w.opts.ownProcess {
			if err := os.Setenv(k, m.Env[k]); err != nil {
				return &rpc.Error{Code: rpc.CodeInvalidParams, Message: fmt.Sprintf("variable %q cannot be set", k)}
			}
		}
		w.known.env[k] = m.Env[k]
	}
	maps.Copy(w.known.connections, m.Connections)
	return nil
}

// connection returns the fields of a connection as they are now: a copy.
func (w *ProxyWorker) connection(ref string) (map[string]any, error) {
	w.mu.Lock()
	raw, ok := w.known.connections[ref]
	w.mu.Unlock()
	if !ok {
		return nil, &rpc.Error{Code: rpc.CodeInvalidParams, Message: fmt.Sprintf("the host has not sent the connection %s", ref)}
	}
	var fields map[string]any
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	if dec.Decode(&fields) != nil { // its error would tell of the text
		return nil, &rpc.Error{Code: rpc.CodeInvalidParams, Message: fmt.Sprintf("the connection %s is no object", ref)}
	}
	return fields, nil
}

// redacted is an error as it may be told.
func (c *workerSecrets) redacted(e *rpc.Error) *rpc.Error {
	out := *e
	out.Message = c.redact.String(e.Message)
	if e.Data != nil {
		data := *e.Data
		data.Type, data.Traceback = c.redact.String(data.Type), c.redact.String(data.Traceback)
		out.Data = &data
	}
	return &out
}
