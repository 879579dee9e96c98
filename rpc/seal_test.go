package rpc_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/rpc"
)

func newSealKey(t *testing.T) *rpc.SealKey {
	t.Helper()
	key, err := rpc.NewSealKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func joined(parts []rpc.Sealed) (data []byte) {
	for _, p := range parts {
		data = append(data, p.Data...)
	}
	return data
}

func TestSealSecrets(t *testing.T) {
	const sentinel = "canary-5f1c"
	big := strings.Repeat("<\u00e9>", 100_000) // several parts, and longer as JSON
	for _, m := range []rpc.Secrets{
		{},
		{Env: map[string]string{"A": sentinel}, Redact: []string{sentinel}},
		{Connections: map[string]json.RawMessage{"@mysql.db": json.RawMessage(`{"password":"` + sentinel + `"}`)}},
		{Env: map[string]string{"BIG": big, "B": sentinel}},
	} {
		key := newSealKey(t)
		parts, err := rpc.SealSecrets(key.Public(), "s1", &m)
		if err != nil {
			t.Fatal(err)
		}
		for i, p := range parts {
			if p.Part != i || p.More != (i < len(parts)-1) {
				t.Errorf("part %d of %d: number %d, more %v", i, len(parts), p.Part, p.More)
			}
			params, err := json.Marshal(p)
			if err != nil {
				t.Fatal(err)
			}
			request, err := json.Marshal(rpc.Request{ID: rpc.RequestID(1<<62 - 1), Method: rpc.MethodSecrets, Params: params, Answered: 1 << 62, Epoch: 1 << 62})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := rpc.EncodeInput(rpc.FrameRequest, request); err != nil {
				t.Errorf("part %d does not fit a frame: %v", i, err)
			}
			if bytes.Contains(request, []byte(sentinel)) || bytes.Contains(request, []byte(base64.StdEncoding.EncodeToString([]byte(sentinel)))) {
				t.Errorf("part %d shows a value", i)
			}
		}
		data := joined(parts)
		got, err := key.Open("s1", data)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(&m, got); diff != "" {
			t.Errorf("-sent +opened:\n%.2000s", diff)
		}

		again, err := rpc.SealSecrets(key.Public(), "s1", &m)
		if err != nil || bytes.Equal(joined(again), data) {
			t.Errorf("sealing twice gives the same bytes, error %v", err)
		}
		damaged := bytes.Clone(data)
		damaged[len(damaged)/2] ^= 1
		for name, open := range map[string]func() (*rpc.Secrets, error){
			"another session": func() (*rpc.Secrets, error) { return key.Open("s2", data) },
			"another worker":  func() (*rpc.Secrets, error) { return newSealKey(t).Open("s1", data) },
			"damaged":         func() (*rpc.Secrets, error) { return key.Open("s1", damaged) },
			"cut":             func() (*rpc.Secrets, error) { return key.Open("s1", data[:len(data)-1]) },
			"nothing":         func() (*rpc.Secrets, error) { return key.Open("s1", nil) },
		} {
			if m, err := open(); !errors.Is(err, rpc.ErrMessage) || m != nil {
				t.Errorf("%s: %v, %v; want rpc.ErrMessage", name, m, err)
			}
		}
	}
}

func TestSealSecretsRefuses(t *testing.T) {
	key := newSealKey(t).Public()
	for _, tt := range []struct {
		name   string
		public []byte
		m      rpc.Secrets
	}{
		{"no key", nil, rpc.Secrets{}},
		{"short key", key[:31], rpc.Secrets{}},
		{"long key", append(bytes.Clone(key), 0), rpc.Secrets{}},
		{"zero key", make([]byte, 32), rpc.Secrets{}},
		{"too long", key, rpc.Secrets{Redact: []string{strings.Repeat("x", rpc.MaxSecrets)}}},
		{"no JSON", key, rpc.Secrets{Connections: map[string]json.RawMessage{"@a.b": json.RawMessage("canary{")}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			parts, err := rpc.SealSecrets(tt.public, "s", &tt.m)
			if err == nil || parts != nil || strings.Contains(err.Error(), "canary") {
				t.Errorf("%d parts, error %v", len(parts), err)
			}
		})
	}
}
