package mock_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/mock"
)

// counter starts a server that sends the numbers up to 9999, eight bytes each,
// to who says "go", and then what else it is sent.
func counter(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer conn.Close()
				buf := make([]byte, 2)
				if _, err := io.ReadFull(conn, buf); err != nil || string(buf) != "go" {
					return
				}
				for i := range 10_000 {
					if _, err := fmt.Fprintf(conn, "<%06d>", i); err != nil {
						return
					}
				}
				io.Copy(conn, conn)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		conns.Wait()
	})
	return l.Addr().String()
}

// numbers is what a counter sends.
func numbers() string {
	var b strings.Builder
	for i := range 10_000 {
		fmt.Fprintf(&b, "<%06d>", i)
	}
	return b.String()
}

func newProxy(t testing.TB, target, script string) *mock.Proxy {
	t.Helper()
	s, err := mock.ParseScript(script)
	if err != nil {
		t.Fatal(err)
	}
	p, err := mock.NewProxy(target, s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if open := p.Stats().Open; open != 0 {
			t.Errorf("%d connections are open after Close", open)
		}
	})
	return p
}

func dial(t testing.TB, p *mock.Proxy) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(p.URL(), "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// fetch says go, closes its side and reads to the end.
func fetch(t testing.TB, p *mock.Proxy) (string, error) {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(p.URL(), "http://"))
	if err != nil { // it was refused before the system has said that it was there
		return "", err
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "go and more"); err != nil {
		return "", err
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		return "", err
	}
	b, err := io.ReadAll(conn)
	return string(b), err
}

func TestProxy(t *testing.T) {
	all := numbers() + " and more"
	for _, test := range []struct {
		script string
		want   string // how much of all comes
		cut    bool   // by a reset
	}{
		{script: "", want: all},
		{script: "after 1000 down: reset", want: all[:1000], cut: true},
		{script: "after 1001 down: close", want: all[:1001]},
		{script: `before 3 "<" down: close`, want: all[:16]},
		{script: `before 3 "<000" down +5: close`, want: all[:21]},
		{script: `before 2 "><" down +50000: close`, want: all[:15+50000]},
		{script: `before 1 "more" up: close`, want: ""},
		{script: `after 10 down in "absent": reset`, want: all},
		{script: `after 10 down in "o and": close`, want: all[:10]},
		{script: "after 5 up: close", want: ""},
		{script: "after 8 down: slow 100000 down\nafter 16 down: release\n", want: all},
		{script: "after 8 down: delay 1ms down", want: all},
		{script: "after 5000 down: freeze down for 5ms", want: all},
		{script: "after 5000 down: stall for 5ms", want: all},
		{script: "every 30000 down: delay 1us down\nafter 60000 down: close", want: all[:60000]},
	} {
		t.Run(test.script, func(t *testing.T) {
			p := newProxy(t, counter(t), test.script)
			got, err := fetch(t, p)
			if strings.HasPrefix(test.script, "after 5 up") || strings.HasPrefix(test.script, "before 1") {
				// What was sent before "go" was cut is not certain to have an answer.
				if !strings.HasPrefix(all, got) {
					t.Error("other bytes came")
				}
				return
			}
			// A reset takes along what is still on its way.
			if got != test.want && !(test.cut && strings.HasPrefix(test.want, got)) {
				t.Errorf("%d bytes came, want %d", len(got), len(test.want))
			}
			if (err != nil) != test.cut {
				t.Errorf("error %v, want a reset: %t", err, test.cut)
			}
		})
	}
}

// A text that comes in two pieces counts from where it began.
func TestProxySplitText(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	served := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			served <- err
			return
		}
		defer conn.Close()
		for _, piece := range []string{"0123>", "<6789abcdef"} {
			// The client asks for each piece once it has the one before.
			if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
				served <- err
				return
			}
			if _, err := io.WriteString(conn, piece); err != nil {
				served <- err
				return
			}
		}
		io.Copy(io.Discard, conn) // until the proxy ends it
		served <- nil
	}()
	p := newProxy(t, l.Addr().String(), `before 1 "><" down +6: close`)
	conn := dial(t, p)
	var got []byte
	for _, n := range []int{5, 5} {
		if _, err := io.WriteString(conn, "."); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(conn, b); err != nil {
			t.Fatal(err)
		}
		got = append(got, b...)
	}
	rest, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(append(got, rest...)); got != "0123><6789" {
		t.Errorf("%q came, want %q", got, "0123><6789")
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// The bytes of a frozen connection come late, after those of another one, and
// its end with them.
func TestProxyHoldsBytes(t *testing.T) {
	p := newProxy(t, counter(t), `after 80 down: freeze`)
	first := dial(t, p)
	if _, err := io.WriteString(first, "go"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 80)
	if _, err := io.ReadFull(first, b); err != nil {
		t.Fatal(err)
	}
	if got, err := fetch(t, p); err != nil || got != numbers()+" and more" {
		t.Errorf("the other connection: %d bytes, %v", len(got), err)
	}
	if err := first.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if err := p.Do(mock.Action{Do: mock.Release}); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(first)
	if err != nil || string(b)+string(rest) != numbers() {
		t.Errorf("%d bytes came, %v", len(b)+len(rest), err)
	}
}

func TestProxyOnDemand(t *testing.T) {
	p := newProxy(t, counter(t), "")
	conns := []net.Conn{dial(t, p), dial(t, p)}
	for _, c := range conns {
		io.WriteString(c, "go")
		if _, err := io.ReadFull(c, make([]byte, 8)); err != nil {
			t.Fatal(err)
		}
	}
	if open := p.Stats().Open; open != 2 {
		t.Errorf("%d connections are open, want 2", open)
	}
	if err := p.Do(mock.Action{Do: mock.Refuse, For: time.Hour}); err != nil {
		t.Fatal(err)
	}
	if err := p.Do(mock.Action{Do: mock.Reset}); err != nil {
		t.Fatal(err)
	}
	for _, c := range conns {
		if _, err := io.Copy(io.Discard, c); err == nil {
			t.Error("a connection ended orderly")
		}
	}
	if got, _ := fetch(t, p); got != "" {
		t.Errorf("a refused connection brought %d bytes", len(got))
	}
	got := p.Stats()
	got.Up, got.Down = 0, 0
	if diff := cmp.Diff(mock.ProxyStats{Accepted: 2, Refused: 1, Struck: 2}, got); diff != "" {
		t.Error(diff)
	}
	if err := p.Do(mock.Action{Do: "melt"}); !errors.Is(err, mock.ErrScript) {
		t.Errorf("got %v", err)
	}
}

func TestScriptText(t *testing.T) {
	text := `at 0s: delay 10ms down
at 1.5s: freeze up all for 5s
after 4096 down in "-follow=": reset
every 100000 down: close all
before 3 "OSR1" down +2 in "a: \"b\"": stall
after 1 up: slow 1000 up for 1m0s
at 3s: refuse 
at 4s: release
`
	text = strings.ReplaceAll(text, "refuse ", "refuse for 1s")
	s, err := mock.ParseScript("# comment\n\n" + text)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(text, s.String()); diff != "" {
		t.Error(diff)
	}
	for _, wrong := range []string{
		"reset", "at: reset", "at 1s reset", "at x: reset", "at 1s: melt", "after 0 down: reset", "after 5: reset", "after 5 down: slow",
		"after 5 down: reset now", `before 1 "x down: reset`, `before 1 "" down: reset`, "before 1 x down: reset", "at 1s: refuse", `every 5 down in x: reset`, "at 1s: delay 0s", ":", `"`,
	} {
		if s, err := mock.ParseScript(wrong); !errors.Is(err, mock.ErrScript) {
			t.Errorf("%q: got %v, %v", wrong, s, err)
		}
	}
}

func TestRandomCuts(t *testing.T) {
	a, b := mock.RandomCuts(7, 50, 1000, "-follow="), mock.RandomCuts(7, 50, 1000, "-follow=")
	if diff := cmp.Diff(a, b); diff != "" {
		t.Error(diff)
	}
	if a.String() == mock.RandomCuts(8, 50, 1000, "-follow=").String() {
		t.Error("another seed makes the same cuts")
	}
	again, err := mock.ParseScript(a.String())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(a, again); diff != "" {
		t.Error(diff)
	}
	for _, s := range a {
		if s.After < 1 || s.After > 1000 {
			t.Errorf("a cut after %d bytes", s.After)
		}
	}
}

func FuzzParseScript(f *testing.F) {
	f.Add("after 4096 down in \"-follow=\": reset\nat 1s: freeze up all for 5s\n")
	f.Add("before 3 \"OSR1\" down +2: close\nevery 7 up: slow 5 for 1s\n")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := mock.ParseScript(text)
		if err != nil {
			return
		}
		again, err := mock.ParseScript(s.String())
		if err != nil {
			t.Fatalf("%q: %v", s, err)
		}
		if diff := cmp.Diff(s, again); diff != "" {
			t.Error(diff)
		}
	})
}

// A client that asks again gets everything, wherever its connection is cut: a
// reset, which takes along what is still on its way, lets nothing else through.
func TestProxyCutEverywhere(t *testing.T) {
	target := counter(t)
	want := []byte(numbers())
	for at := int64(1); at < 3000; at += 97 {
		p, err := mock.NewProxy(target, mock.Script{{After: at, Dir: mock.Down, Action: mock.Action{Do: mock.Reset}}})
		if err != nil {
			t.Fatal(err)
		}
		conn := dial(t, p)
		io.WriteString(conn, "go")
		got, err := io.ReadAll(conn)
		if err == nil || !bytes.HasPrefix(want[:at], got) {
			t.Errorf("cut at %d: %d bytes, %v", at, len(got), err)
		}
		if got, err := fetch(t, p); err != nil || got != string(want)+" and more" {
			t.Errorf("after the cut at %d: %d bytes, %v", at, len(got), err)
		}
		conn.Close()
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
}
