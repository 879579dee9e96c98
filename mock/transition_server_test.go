package mock

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/osiris-pipelines/remote/mock/internal/envd"
)

// slowGuest takes its time to change.
type slowGuest struct {
	guest
	entered chan string
	release chan struct{}
}

func (g *slowGuest) freeze(frozen bool) error {
	if frozen {
		g.entered <- "pause"
		<-g.release
	}
	return g.guest.freeze(frozen)
}

func (g *slowGuest) image() (envd.Machine, error) {
	g.entered <- "snapshot"
	<-g.release
	return g.guest.image()
}

// TestTransitions asks for all sorts of things while a sandbox changes.
func TestTransitions(t *testing.T) {
	for _, test := range []struct {
		begin, body string
		status      map[string]int // of what is asked meanwhile
		connect     int            // afterwards
	}{
		{"pause", "", map[string]int{"GET ": 200, "POST /timeout": 409, "POST /pause": 409, "POST /snapshots": 409, "PUT /network": 409}, 201},
		{"snapshots", "{}", map[string]int{"GET ": 200, "POST /timeout": 409, "POST /pause": 409, "POST /snapshots": 409, "POST /fork": 409, "POST /resume": 409}, 200},
	} {
		t.Run(test.begin, func(t *testing.T) {
			s, err := NewServer()
			if err != nil {
				t.Fatal(err)
			}
			client := &http.Client{Transport: &http.Transport{}}
			t.Cleanup(func() {
				client.CloseIdleConnections()
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			})
			do := func(method, path, body string) (int, string) {
				req, err := http.NewRequest(method, s.URL()+path, strings.NewReader(body))
				if err != nil {
					t.Error(err)
					return 0, ""
				}
				req.Header.Set("X-API-Key", s.APIKey())
				req.Header.Set("Content-Type", "application/json")
				res, err := client.Do(req)
				if err != nil {
					t.Error(err)
					return 0, ""
				}
				defer res.Body.Close()
				b, err := io.ReadAll(res.Body)
				if err != nil {
					t.Error(err)
				}
				return res.StatusCode, string(b)
			}
			do("POST", "/sandboxes", `{"templateID":"base","timeout":60}`)
			s.mu.Lock()
			i := s.order[0]
			slow := &slowGuest{i.guest, make(chan string), make(chan struct{})}
			i.guest = slow
			s.mu.Unlock()
			path := "/sandboxes/" + i.id

			done := make(chan int, 2)
			go func() {
				status, _ := do("POST", path+"/"+test.begin, test.body)
				done <- status
			}()
			<-slow.entered
			for what, want := range test.status {
				method, rest, _ := strings.Cut(what, " ")
				body := `{"timeout":60}`
				if method == "GET" {
					body = ""
				}
				if got, answer := do(method, path+rest, body); got != want {
					t.Errorf("%s: %d %s, want %d", what, got, answer, want)
				}
			}
			go func() { // waits for the end of it
				status, _ := do("POST", path+"/connect", `{"timeout":60}`)
				done <- status
			}()
			close(slow.release)
			got := map[int]bool{<-done: true, <-done: true}
			if begun := map[string]int{"pause": 204, "snapshots": 201}[test.begin]; !got[begun] || !got[test.connect] {
				t.Errorf("statuses %v, want %d and %d", got, begun, test.connect)
			}
		})
	}
}
