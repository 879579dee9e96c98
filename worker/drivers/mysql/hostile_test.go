package mysql_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/osiris-pipelines/remote/worker/drivers/mysql"
)

// oddServer listens for clients, lets everybody in, and answers queries with
// rows of text, or not at all. It returns the fields of a connection.
func oddServer(t *testing.T, answer func(client int64, query string) (rows []string, ok bool)) map[string]any {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	t.Cleanup(func() {
		l.Close() //nolint:errcheck // only listened on
		serving.Wait()
	})
	var clients atomic.Int64
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			n := clients.Add(1)
			serving.Go(func() {
				defer c.Close() //nolint:errcheck // its client has left
				serveOddly(c, func(query string) ([]string, bool) { return answer(n, query) })
			})
		}
	})
	return map[string]any{
		"host": "127.0.0.1", "port": l.Addr().(*net.TCPAddr).Port, "database": "d", "user": "u", "password": "p", "ssl_mode": "disabled",
	}
}

func serveOddly(c net.Conn, answer func(query string) ([]string, bool)) {
	var seq byte
	send := func(body ...byte) {
		head := binary.LittleEndian.AppendUint32(nil, uint32(len(body)))
		head[3] = seq
		seq++
		c.Write(append(head, body...)) //nolint:errcheck // the client finds out
	}
	read := func() (string, error) {
		var head [4]byte
		if _, err := io.ReadFull(c, head[:]); err != nil {
			return "", err
		}
		seq, head[3] = head[3]+1, 0
		body := make([]byte, binary.LittleEndian.Uint32(head[:]))
		_, err := io.ReadFull(c, body)
		return string(body), err
	}
	done := []byte{0, 0, 0, 2, 0, 0, 0}
	end := []byte{0xfe, 0, 0, 2, 0}
	send([]byte("\x0a8.0.0\x00\x01\x00\x00\x0012345678\x00\xff\xf7\x2d\x02\x00\x08\x00\x15" + strings.Repeat("\x00", 10) + "123456789012\x00mysql_native_password\x00")...)
	if _, err := read(); err != nil {
		return
	}
	send(done...)
	for {
		query, err := read()
		if err != nil || query == "\x01" {
			return
		}
		query = query[1:]
		if !strings.HasPrefix(query, "SELECT") {
			send(done...)
			continue
		}
		row, ok := answer(query)
		if !ok {
			continue
		}
		send(byte(len(row)))
		var values []byte
		for _, v := range row {
			send([]byte("\x03def\x00\x00\x00\x01c\x01c\x0c\x2d\x00\xff\xff\xff\xff\xfd\x00\x00\x00\x00\x00")...)
			values = append(append(values, byte(len(v))), v...)
		}
		send(end...)
		send(values...)
		send(end...)
	}
}

// A server that answers a second connection with less than the first, or with
// more than was asked for, does not end the program while a query is stopped.
func TestStoppedByOddServer(t *testing.T) {
	for name, second := range map[string]func(query string) []string{
		"identity": func(query string) []string {
			if strings.Contains(query, "max_allowed_packet") {
				return []string{"1048576"}
			}
			return []string{"1"}
		},
		"packet": func(query string) []string {
			if strings.Contains(query, "max_allowed_packet") {
				return []string{"1", "2"}
			}
			return []string{"1", "host", "3306", "1"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			connection := oddServer(t, func(client int64, query string) ([]string, bool) {
				switch {
				case client > 1:
					return second(query), true
				case strings.Contains(query, "max_allowed_packet"):
					return []string{"1048576"}, true
				case strings.Contains(query, "CONNECTION_ID"):
					return []string{"1", "host", "3306", "1"}, true
				}
				cancel()
				return nil, false
			})
			step, _ := newStep(map[string]any{"query": "SELECT 1"}, connection)
			if _, err := new(mysql.Extractor).Run(ctx, step); !errors.Is(err, context.Canceled) {
				t.Errorf("error %v", err)
			}
		})
	}
}
