package rpc_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/rpc"
)

// enveloped are the frame types that Data takes apart.
var enveloped = []rpc.FrameType{rpc.FrameEvent, rpc.FrameMetric, rpc.FrameLog, rpc.FrameHeartbeat, rpc.FrameClose}

func TestData(t *testing.T) {
	deep := func(n int) string { return strings.Repeat(`{"a":`, n) + "1" + strings.Repeat("}", n) }
	for _, tc := range []struct {
		name, payload string // with TYPE for the frame type's name
		want          string // empty: an error
	}{
		{"ours", `{"type":"TYPE","data":{"a":1}}`, `{"a":1}`},
		{"empty", `{"type":"TYPE","data":{}}`, `{}`},
		{"space inside", `{"type":"TYPE","data":{ "a" :	[1, 2] }}`, `{ "a" :	[1, 2] }`},
		{"space inside and outside", `{"type": "TYPE", "data": { "a" :	[1, 2] } }`, `{ "a" :	[1, 2] }`},
		{"space behind", `{"type":"TYPE","data":{} }`, `{}`},
		{"line behind", `{"type":"TYPE","data":{}` + "\n}", `{}`},
		{"space before", `{"type":"TYPE","data": {}}`, `{}`},
		{"space around", " {\"type\":\"TYPE\",\"data\":{}}\n", `{}`},
		{"lines inside", "{\"type\":\"TYPE\",\"data\":{\"a\":\r\n[ 1 ]}}", `{"a":[1]}`},
		{"other order", `{"data":{"a":1},"type":"TYPE"}`, `{"a":1}`},
		{"more keys", `{"type":"TYPE","data":{"a":1},"v":2}`, `{"a":1}`},
		{"data twice", `{"type":"TYPE","data":{"a":1},"data":{"b":2}}`, `{"b":2}`},
		{"escaped line ends", `{"type":"TYPE","data":{"a":"\r\n"}}`, `{"a":"\r\n"}`},
		{"escaped keys", `{"t\u0079pe":"TYPE","data":{"a":"é"}}`, `{"a":"é"}`},
		{"nested", `{"type":"TYPE","data":` + deep(500) + `}`, deep(500)},
		{"nested with lines", `{"type":"TYPE","data":` + deep(499) + "\n}", deep(499)},

		{"nothing", ``, ``},
		{"null", `null`, ``},
		{"no object", `[]`, ``},
		{"no type", `{"data":{}}`, ``},
		{"another type", `{"type":"other","data":{}}`, ``},
		{"no data", `{"type":"TYPE"}`, ``},
		{"null data", `{"type":"TYPE","data":null}`, ``},
		{"list", `{"type":"TYPE","data":[]}`, ``},
		{"number", `{"type":"TYPE","data":1}`, ``},
		{"string", `{"type":"TYPE","data":"{}"}`, ``},
		{"unclosed", `{"type":"TYPE","data":{}`, ``},
		{"too much", `{"type":"TYPE","data":{}}}`, ``},
		{"two objects", `{"type":"TYPE","data":{}{}}`, ``},
		{"line end in a string", "{\"type\":\"TYPE\",\"data\":{\"a\":\"\n\"}}", ``},
		{"not UTF-8", "{\"type\":\"TYPE\",\"data\":{\"a\":\"\xff\"}}", ``},
		{"not UTF-8, with space", "{\"type\":\"TYPE\", \"data\":{\"a\":\"\xff\"}}", ``},
		{"nested with lines, too deep", `{"type":"TYPE","data":{"a":` + strings.Repeat("[", 10_000) + "\n", ``},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, typ := range enveloped {
				payload := []byte(strings.ReplaceAll(tc.payload, "TYPE", typ.String()))
				got, err := rpc.Data(typ, payload)
				if string(got) != tc.want {
					t.Errorf("%s: %q, %v; want %q", typ, got, err, tc.want)
				}
				if (err != nil) != (tc.want == "") || err != nil && !errors.Is(err, rpc.ErrMessage) {
					t.Errorf("%s: error is %v", typ, err)
				}
				if got != nil {
					_ = append(got, "overwritten"...)
				}
				if string(payload) != strings.ReplaceAll(tc.payload, "TYPE", typ.String()) {
					t.Errorf("%s: appending to the data changed the payload", typ)
				}
			}
		})
	}
	for _, typ := range []rpc.FrameType{rpc.FrameRequest, rpc.FrameAck, rpc.FrameResponse, rpc.FrameArrow, 0, 200} {
		if _, err := rpc.Data(typ, []byte(`{"type":"`+typ.String()+`","data":{}}`)); !errors.Is(err, rpc.ErrMessage) {
			t.Errorf("%s: %v", typ, err)
		}
	}
}

// dataBySlowPath is what Data must return whichever way it takes.
func dataBySlowPath(typ rpc.FrameType, payload []byte) (json.RawMessage, error) {
	return rpc.Data(typ, append([]byte(" "), payload...))
}

func TestRequest(t *testing.T) {
	for _, tc := range []struct {
		payload string
		want    *rpc.Request
	}{
		{`{"id":"req_1","method":"ping"}`, &rpc.Request{ID: "req_1", Method: "ping"}},
		{`{"id":"req_12","method":"execute_step","params":{"step_id":"a"},"answered":11,"new":1}`,
			&rpc.Request{ID: "req_12", Method: "execute_step", Params: []byte(`{"step_id":"a"}`), Answered: 11}},
		{`{"id":"req_9223372036854775807","method":"x","params_file":{"path":"p","size":5,"sha256":"00"}}`,
			&rpc.Request{ID: "req_9223372036854775807", Method: "x", ParamsFile: &rpc.FileRef{Path: "p", Size: 5, SHA256: "00"}}},
		{``, nil},
		{`null`, nil},
		{`[]`, nil},
		{`{"id":"req_1"}`, nil},
		{`{"id":"req_1","method":""}`, nil},
		{`{"method":"ping"}`, nil},
		{`{"id":"req_0","method":"ping"}`, nil},
		{`{"id":"req_01","method":"ping"}`, nil},
		{`{"id":"1","method":"ping"}`, nil},
		{`{"id":1,"method":"ping"}`, nil},
		{`{"id":"req_1","method":"ping","answered":-1}`, nil},
		{`{"id":"req_1","method":"ping","answered":1.5}`, nil},
		{`{"id":"req_1","method":"ping","answered":9223372036854775808}`, nil},
		{`{"id":"req_1","method":"ping"}{}`, nil},
	} {
		got, err := rpc.DecodeRequest([]byte(tc.payload))
		if diff := cmp.Diff(tc.want, got); diff != "" || (err == nil) != (tc.want != nil) {
			t.Errorf("%s: %v\n%s", tc.payload, err, diff)
		}
		if err != nil && !errors.Is(err, rpc.ErrMessage) {
			t.Errorf("%s: error is %v", tc.payload, err)
		}
	}
}

func TestResponse(t *testing.T) {
	for _, tc := range []struct {
		payload string
		want    *rpc.Response
	}{
		{`{"id":"req_1","result":{}}`, &rpc.Response{ID: "req_1", Result: []byte("{}")}},
		{`{"id":"req_1","result":null}`, &rpc.Response{ID: "req_1", Result: []byte("null")}},
		{`{"id":"req_2","error":{"code":1,"message":"m","data":{"step_id":"a","error_type":"*fs.PathError"}}}`,
			&rpc.Response{ID: "req_2", Error: &rpc.Error{Code: rpc.CodeStepFailed, Message: "m", Data: &rpc.ErrorData{StepID: "a", Type: "*fs.PathError"}}}},
		{`{"id":"req_1"}`, nil},
		{`{"id":"req_1","error":null}`, nil},
		{`{"id":"req_1","result":{},"error":{"code":1,"message":""}}`, nil},
		{`{"id":"req_x","result":{}}`, nil},
		{`{"result":{}}`, nil},
		{`"req_1"`, nil},
		{``, nil},
	} {
		got, err := rpc.DecodeResponse([]byte(tc.payload))
		if diff := cmp.Diff(tc.want, got); diff != "" || (err == nil) != (tc.want != nil) {
			t.Errorf("%s: %v\n%s", tc.payload, err, diff)
		}
		if err != nil && !errors.Is(err, rpc.ErrMessage) {
			t.Errorf("%s: error is %v", tc.payload, err)
		}
	}
}

func TestAck(t *testing.T) {
	for payload, want := range map[string]int64{
		`{"offset":0}`: 0, `{}`: 0, `{"offset":9223372036854775807}`: 1<<63 - 1, `{"offset":5,"x":1}`: 5,
		`{"offset":-1}`: -1, `{"offset":9223372036854775808}`: -1, `{"offset":"5"}`: -1, `[]`: -1, ``: -1,
	} {
		got, err := rpc.DecodeAck([]byte(payload))
		if want < 0 {
			if !errors.Is(err, rpc.ErrMessage) || got != (rpc.Ack{}) {
				t.Errorf("%s: %+v, %v", payload, got, err)
			}
		} else if err != nil || got.Offset != want {
			t.Errorf("%s: %+v, %v", payload, got, err)
		}
	}
}

func TestRequestID(t *testing.T) {
	for _, n := range []int64{1, 9, 10, 1 << 40, 1<<63 - 1} {
		if got, err := rpc.RequestNumber(rpc.RequestID(n)); err != nil || got != n {
			t.Errorf("%d: %d, %v", n, got, err)
		}
	}
	for _, id := range []string{"", "req_", "req_0", "req_00", "req_-1", "req_+1", "req_01", "req_1 ", " req_1", "req_1_0", "req_0x1", "req_9223372036854775808", "Req_1", "1", strings.Repeat("9", 1000)} {
		if n, err := rpc.RequestNumber(id); !errors.Is(err, rpc.ErrMessage) || n != 0 || len(err.Error()) > 200 {
			t.Errorf("%q: %d, %v", id, n, err)
		}
	}
}

func TestNegotiate(t *testing.T) {
	for _, tc := range []struct{ minA, maxA, minB, maxB, want int }{
		{1, 1, 1, 1, 1}, {1, 3, 2, 5, 3}, {2, 5, 1, 3, 3}, {1, 9, 4, 4, 4}, {1, 1, 2, 2, 0}, {3, 4, 1, 2, 0}, {0, 0, 1, 1, 0},
	} {
		got, err := rpc.Negotiate(tc.minA, tc.maxA, tc.minB, tc.maxB)
		if got != tc.want || (err == nil) != (tc.want != 0) {
			t.Errorf("%+v: %d, %v", tc, got, err)
		}
		if err != nil && !errors.Is(err, &rpc.Error{Code: rpc.CodeProtocol}) {
			t.Errorf("%+v: error is %v", tc, err)
		}
	}
}

func TestErrorIs(t *testing.T) {
	err := fmt.Errorf("step: %w", &rpc.Error{Code: rpc.CodeTimeout, Message: "took too long"})
	if !errors.Is(err, &rpc.Error{Code: rpc.CodeTimeout}) || errors.Is(err, &rpc.Error{Code: rpc.CodeCancelled}) {
		t.Error("an error matches by its code alone")
	}
	if err.Error() != "step: took too long" {
		t.Errorf("text is %q", err)
	}
}

func FuzzMessages(f *testing.F) {
	for _, s := range []string{
		`{"type":"event","data":{"a":1}}`, `{"type":"metric","data":{"a":"\u2028"} }`, `{"type":"log", "data":{"a":[1e5,-0]}}`,
		`{"type":"heartbeat","data":{"a":1},"data":{}}`, "{\"type\":\"close\",\"data\":{\n}}", "{\"type\":\"event\",\"data\":{\"\xff\":1}}",
		`{"id":"req_1","method":"ping","params":{},"answered":3}`, `{"id":"req_1","result":{"a":"<\u003c"}}`,
		`{"id":"req_7","error":{"code":-32601,"message":"m","data":{"available":["a"]}}}`, `{"offset":17}`,
		"\x01\x00\x00\x00\x01\x00\x00\x00data", `null`, `{}`, `[]`, ``,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		original := bytes.Clone(payload)
		for _, typ := range enveloped {
			data, err := rpc.Data(typ, payload)
			slow, slowErr := dataBySlowPath(typ, payload)
			if !bytes.Equal(data, slow) || (err == nil) != (slowErr == nil) {
				t.Errorf("%s: fast %q, %v; slow %q, %v", typ, data, err, slow, slowErr)
			}
			if err != nil {
				if data != nil || !errors.Is(err, rpc.ErrMessage) {
					t.Errorf("%s: %q, %v", typ, data, err)
				}
				continue
			}
			checkLine(t, data)
			again, err := rpc.Data(typ, fmt.Appendf(nil, `{"type":%q,"data":%s}`, typ.String(), data))
			if err != nil || !bytes.Equal(again, data) {
				t.Errorf("%s: %q again is %q, %v", typ, data, again, err)
			}
		}
		if r, err := rpc.DecodeRequest(payload); err == nil {
			if _, err := rpc.RequestNumber(r.ID); err != nil || r.Method == "" || r.Answered < 0 {
				t.Errorf("accepted %+v", r)
			}
			stable(t, r, rpc.DecodeRequest)
		} else if r != nil || !errors.Is(err, rpc.ErrMessage) {
			t.Errorf("%+v, %v", r, err)
		}
		if r, err := rpc.DecodeResponse(payload); err == nil {
			if _, err := rpc.RequestNumber(r.ID); err != nil || (r.Result == nil) == (r.Error == nil) {
				t.Errorf("accepted %+v", r)
			}
			stable(t, r, rpc.DecodeResponse)
		} else if r != nil || !errors.Is(err, rpc.ErrMessage) {
			t.Errorf("%+v, %v", r, err)
		}
		if a, err := rpc.DecodeAck(payload); err == nil {
			if a.Offset < 0 {
				t.Errorf("accepted %+v", a)
			}
			stable(t, a, rpc.DecodeAck)
		} else if !errors.Is(err, rpc.ErrMessage) {
			t.Error(err)
		}
		if stream, data, last, err := rpc.Chunk(payload); err == nil {
			flag := byte(0)
			if last {
				flag = 1
			}
			header := []byte{byte(stream), byte(stream >> 8), byte(stream >> 16), byte(stream >> 24), flag, 0, 0, 0}
			if !bytes.Equal(append(header, data...), payload) {
				t.Errorf("chunk %x is taken apart wrongly", payload)
			}
		} else if !errors.Is(err, rpc.ErrMessage) {
			t.Error(err)
		}
		if !bytes.Equal(payload, original) {
			t.Error("the payload was changed")
		}
	})
}

// checkLine checks what everybody who reads a line relies on.
func checkLine(t testing.TB, line []byte) {
	t.Helper()
	if !json.Valid(line) || !utf8.Valid(line) || line[0] != '{' || line[len(line)-1] != '}' || bytes.ContainsAny(line, "\r\n") {
		t.Fatalf("no JSON object on one line: %q", line)
	}
}

// stable checks that a message survives being written and read.
func stable[T any](t *testing.T, v T, decode func([]byte) (T, error)) {
	t.Helper()
	once, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	again, err := decode(once)
	if err != nil {
		t.Fatalf("%s: %v", once, err)
	}
	twice, err := json.Marshal(again)
	if err != nil || !bytes.Equal(once, twice) {
		t.Errorf("%s became %s, %v", once, twice, err)
	}
}
