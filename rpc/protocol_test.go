package rpc_test

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/rpc"
)

// docs/protocol.md says what the code does.
func TestProtocolDocument(t *testing.T) {
	b, err := os.ReadFile("../docs/protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	doc := string(b)

	t.Run("frames", func(t *testing.T) {
		request, err := rpc.EncodeInput(rpc.FrameRequest, []byte(`{"id":"req_1","method":"ping"}`))
		if err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string][]byte{
			"request":  request,
			"response": rpc.AppendFrame(nil, rpc.FrameResponse, 4096, []byte(`{"id":"req_1","result":{}}`)),
		} {
			_, rest, _ := strings.Cut(doc, "```hex "+name+"\n")
			text, _, _ := strings.Cut(rest, "```")
			got, err := hex.DecodeString(strings.Join(strings.Fields(text), ""))
			if err != nil || !bytes.Equal(want, got) {
				t.Errorf("%s: %v\n%s", name, err, cmp.Diff(hex.Dump(want), hex.Dump(got)))
			}
		}
	})

	t.Run("types", func(t *testing.T) {
		for typ := range rpc.FrameType(255) {
			row := fmt.Sprintf("| %d | %s | ", typ, typ)
			known := !strings.HasPrefix(typ.String(), "frame type")
			if listed := strings.Contains(doc, row); listed != known {
				t.Errorf("row %q: listed %v, known %v", row, listed, known)
			}
		}
	})

	t.Run("codes", func(t *testing.T) {
		for _, code := range []rpc.Code{
			rpc.CodeInvalidRequest, rpc.CodeMethodNotFound, rpc.CodeInvalidParams, rpc.CodeInternal, rpc.CodeStepFailed,
			rpc.CodeCancelled, rpc.CodeTimeout, rpc.CodeUnknownDriver, rpc.CodeMissingInput, rpc.CodeProtocol,
			rpc.CodeDamagedFile, rpc.CodeOwnershipLost, rpc.CodeMissingRuntime, rpc.CodeInstallFailed,
		} {
			if !strings.Contains(doc, fmt.Sprintf("\n| %d | ", code)) {
				t.Errorf("code %d is not listed", code)
			}
		}
	})

	t.Run("fields", func(t *testing.T) {
		quoted := make(map[string]bool)
		for _, m := range regexp.MustCompile("[`\"]([a-z0-9_]+)[`\"]").FindAllStringSubmatch(doc, -1) {
			quoted[m[1]] = true
		}
		for _, v := range []any{
			rpc.Request{}, rpc.Response{}, rpc.Error{}, rpc.ErrorData{}, rpc.Ack{}, rpc.Handshake{}, rpc.HandshakeResult{}, rpc.FileRef{}, rpc.Sealed{}, rpc.Secrets{},
			rpc.VerifyFiles{}, rpc.FileSum{}, rpc.TableRef{}, rpc.StreamRef{}, rpc.SpilledOutput{}, rpc.DeclaredDriver{}, rpc.CheckDeps{}, rpc.CheckDepsResult{}, rpc.InstallDeps{}, rpc.InstallDepsResult{},
			rpc.ExecuteStep{}, rpc.InputRef{}, rpc.StepResult{}, rpc.OutputRef{}, rpc.SpilledOutput{}, rpc.FetchOutput{}, rpc.FetchOutputResult{}, rpc.Cancel{},
			rpc.Artifact{}, rpc.SealResult{}, rpc.SkippedArtifact{}, rpc.RecoverResult{}, rpc.LostStep{}, rpc.Log{}, rpc.Heartbeat{}, rpc.Close{},
			rpc.Processes{}, rpc.ProcessID{}, rpc.Death{}, rpc.Remains{}, rpc.Print{}, rpc.WorkerStatus{}, rpc.ProcessState{},
		} {
			for i := range reflect.TypeOf(v).NumField() {
				f := reflect.TypeOf(v).Field(i)
				name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
				if f.Anonymous {
					continue // its fields are listed by themselves
				}
				if !quoted[name] {
					t.Errorf("%T: field %q is not described", v, name)
				}
			}
		}
		for _, method := range []string{
			rpc.MethodHandshake, rpc.MethodExecuteStep, rpc.MethodFetchOutput, rpc.MethodCancel, rpc.MethodSealArtifacts,
			rpc.MethodShutdown, rpc.MethodPing, rpc.MethodSecrets, rpc.MethodVerifyFiles, rpc.MethodCheckDeps, rpc.MethodInstallDeps,
		} {
			if !quoted[method] {
				t.Errorf("method %q is not described", method)
			}
		}
	})

	t.Run("limits", func(t *testing.T) {
		comma := func(n int) string {
			s := fmt.Sprint(n)
			for i := len(s) - 3; i > 0; i -= 3 {
				s = s[:i] + "," + s[i:]
			}
			return s
		}
		for _, n := range []int{rpc.MaxInputFrame, rpc.MaxInputFrame - rpc.HeaderSize, rpc.MaxPayload} {
			if !strings.Contains(doc, comma(n)) {
				t.Errorf("limit %s is not in the document", comma(n))
			}
		}
		if !strings.Contains(doc, fmt.Sprintf("# The worker protocol, version %d\n", rpc.Version)) {
			t.Errorf("the document is not about version %d", rpc.Version)
		}
	})

	t.Run("lines", func(t *testing.T) {
		l := rpc.Line{Time: benchTime, Session: "run_1", Name: "step_start", StepID: "extract"}
		event := l.AppendEvent(nil, map[string]any{"driver": "mysql.extractor"})
		l.Name = "rows_read"
		for _, line := range [][]byte{event, l.AppendMetric(nil, 5, "rows")} {
			if !strings.Contains(doc, "    "+string(line)+"\n") {
				t.Errorf("not in the document: %s", line)
			}
		}
	})
}
