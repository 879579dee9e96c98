package mock

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// maxLogs bounds the entries that a sandbox's log keeps, and those of an
// answer.
const maxLogs = 1000

// logEntry is a line of a sandbox's log, which has its changes of state alone.
type logEntry struct {
	Timestamp time.Time         `json:"timestamp"`
	Level     string            `json:"level"`
	Message   string            `json:"message"`
	Fields    map[string]string `json:"fields"`
}

// logs returns the log of a sandbox, the oldest first. One that nobody knows
// has none.
func (s *Server) logs(id string) []logEntry {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.instances[id]
	if i == nil {
		return []logEntry{}
	}
	list := make([]logEntry, len(i.logs))
	for k, e := range i.logs {
		e.Timestamp = e.Timestamp.UTC()
		e.Fields = map[string]string{"sandboxID": i.id}
		list[k] = e
	}
	return list
}

func (c *control) logsV1(_ http.ResponseWriter, r *http.Request) (int, any, error) {
	id, err := sandboxID(r)
	if err != nil {
		return 0, nil, err
	}
	start, err := queryInt(r.URL.Query(), "start", 0, 1<<62, 0)
	if err != nil {
		return 0, nil, err
	}
	limit, err := queryInt(r.URL.Query(), "limit", 0, 1<<31-1, maxLogs)
	if err != nil {
		return 0, nil, err
	}
	type line struct {
		Timestamp time.Time `json:"timestamp"`
		Line      string    `json:"line"`
	}
	list := slices.DeleteFunc(c.server.logs(id), func(e logEntry) bool { return e.Timestamp.UnixMilli() < start })
	list = list[:min(int(limit), len(list))]
	lines := make([]line, len(list))
	for k, e := range list {
		lines[k] = line{e.Timestamp, fmt.Sprintf(`{"level":%q,"message":%q}`, e.Level, e.Message)}
	}
	return http.StatusOK, struct {
		Logs       []line     `json:"logs"`
		LogEntries []logEntry `json:"logEntries"`
	}{lines, list}, nil
}

func (c *control) logsV2(_ http.ResponseWriter, r *http.Request) (int, any, error) {
	id, err := sandboxID(r)
	if err != nil {
		return 0, nil, err
	}
	q := r.URL.Query()
	limit, err := queryInt(q, "limit", 0, maxLogs, maxLogs)
	if err != nil {
		return 0, nil, err
	}
	direction, err := queryEnum(q, "direction", "backward", "forward")
	if err != nil {
		return 0, nil, err
	}
	cursor, err := queryInt(q, "cursor", 0, 1<<62, -1)
	if err != nil {
		return 0, nil, err
	}
	levels := []string{"debug", "info", "warn", "error"}
	level, err := queryEnum(q, "level", levels...)
	if err != nil {
		return 0, nil, err
	}
	search := q.Get("search")
	if len(search) > 256 {
		return 0, nil, invalid(`parameter "search" in query`, "maximum string length is 256")
	}
	list := slices.DeleteFunc(c.server.logs(id), func(e logEntry) bool {
		ms := e.Timestamp.UnixMilli()
		return cursor >= 0 && (direction == "forward" && ms < cursor || direction == "backward" && ms > cursor) ||
			slices.Index(levels, e.Level) < slices.Index(levels, level) || !strings.Contains(e.Message, search)
	})
	if direction == "backward" {
		slices.Reverse(list)
	}
	return http.StatusOK, struct {
		Logs []logEntry `json:"logs"`
	}{list[:min(int(limit), len(list))]}, nil
}
