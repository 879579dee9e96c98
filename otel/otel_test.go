package otel_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace/noop"
	"go.uber.org/goleak"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/mock"
	"github.com/osiris-pipelines/remote/otel"
	"github.com/osiris-pipelines/remote/rpc"
	"github.com/osiris-pipelines/remote/worker"
)

func TestMain(m *testing.M) {
	worker.Main(worker.NewRegistry())
	goleak.VerifyTestMain(m)
}

type driverFunc func(ctx context.Context, step *worker.Step) (*worker.Result, error)

func (f driverFunc) Run(ctx context.Context, step *worker.Step) (*worker.Result, error) {
	return f(ctx, step)
}

// provider is one whose spans are kept in memory.
func provider(t *testing.T) (*trace.TracerProvider, *tracetest.InMemoryExporter) {
	t.Helper()
	kept := tracetest.NewInMemoryExporter()
	p := trace.NewTracerProvider(trace.WithSyncer(kept))
	t.Cleanup(func() {
		if err := p.Shutdown(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	return p, kept
}

// drivers go on with the trace by a provider of their own, as they do in
// another process.
func drivers(p *trace.TracerProvider) *worker.Registry {
	r := worker.NewRegistry()
	add := func(name string, run driverFunc) {
		r.Register(name, worker.Transform, func() worker.Driver { return run })
	}
	add("traced", func(ctx context.Context, step *worker.Step) (*worker.Result, error) {
		_, span := p.Tracer("driver").Start(otel.StepContext(ctx, step), "driver of "+step.ID)
		span.End()
		return nil, nil
	})
	add("fails", func(context.Context, *worker.Step) (*worker.Result, error) { return nil, errors.New("no such table") })
	return r
}

// The host's span, the run, its steps, and what their drivers make of it are one
// tree, wherever it runs.
func TestSpanTree(t *testing.T) {
	for _, adapter := range []string{"local", "sandbox"} {
		t.Run(adapter, func(t *testing.T) {
			host, kept := provider(t)
			far, keptFar := provider(t)
			registry := drivers(far)
			var a interface {
				remote.ExecutionAdapter
				Close() error
			}
			var err error
			if adapter == "local" {
				a, err = remote.NewLocalAdapter(remote.Config{Drivers: registry, InProcess: true})
			} else {
				a, err = remote.NewE2BTransparentProxy(remote.Config{Drivers: registry, OpenSandbox: mock.NewProvider(&mock.Options{Drivers: registry}).OpenSandbox})
			}
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			ec := &remote.ExecutionContext{SessionID: "s", LogsDir: filepath.Join(t.TempDir(), "s"), StartedAt: time.Unix(0, 0), Tracer: otel.NewTracer(host)}
			ctx, span := host.Tracer("host").Start(t.Context(), "nightly")
			m := &remote.Manifest{Name: "m", Steps: []remote.Step{
				{ID: "a", Driver: "traced"}, {ID: "b", Driver: "traced", Needs: []string{"a"}}, {ID: "c", Driver: "fails", Needs: []string{"b"}},
			}}
			_, _, err = remote.Run(ctx, a, m, ec)
			if !errors.Is(err, remote.ErrStepFailed) {
				t.Fatal(err)
			}
			span.End()

			spans := append(kept.GetSpans(), keptFar.GetSpans()...)
			names := make(map[string]string) // by span id
			name := func(s tracetest.SpanStub) string {
				for _, a := range s.Attributes {
					if a.Key == "osiris.step_id" {
						return "step " + a.Value.AsString()
					}
				}
				return s.Name
			}
			for _, s := range spans {
				names[s.SpanContext.SpanID().String()] = name(s)
				if s.SpanContext.TraceID() != span.SpanContext().TraceID() {
					t.Errorf("%s is of another trace", s.Name)
				}
			}
			var tree []string
			for _, s := range spans {
				if !strings.Contains(s.Name, ".phase.") {
					tree = append(tree, names[s.Parent.SpanID().String()]+" > "+name(s))
				}
				if failed := s.Status.Code == codes.Error; failed != (name(s) == "step c" || s.Name == "osiris.execute") {
					t.Errorf("%s: status %v", name(s), s.Status)
				}
			}
			slices.Sort(tree)
			want := []string{
				" > nightly", "nightly > osiris.collect", "nightly > osiris.execute",
				"osiris.execute > step a", "osiris.execute > step b", "osiris.execute > step c",
				"step a > driver of a", "step b > driver of b",
			}
			if diff := cmp.Diff(want, tree); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestTracer(t *testing.T) {
	host, kept := provider(t)
	ctx, s := otel.NewTracer(host).Start(t.Context(), "x", slog.Int("n", 1), slog.Duration("took", time.Second))
	if parent := s.TraceParent(); !rpc.ValidTraceParent(parent) {
		t.Errorf("traceparent %q", parent)
	} else if got := otel.StepContext(t.Context(), &worker.Step{TraceParent: parent}); got == t.Context() {
		t.Error("a driver gets no context of it")
	}
	_, below := otel.NewTracer(host).Start(ctx, "y")
	below.End(nil)
	s.SetAttributes(slog.Bool("b", true), slog.Float64("f", 0.5), slog.String("s", "t"))
	s.End(fmt.Errorf("broken"))
	spans := kept.GetSpans()
	if len(spans) != 2 || spans[0].Parent.SpanID() != spans[1].SpanContext.SpanID() {
		t.Fatalf("spans %+v", spans)
	}
	want := []attribute.KeyValue{
		attribute.Int64("n", 1), attribute.String("took", "1s"), attribute.Bool("b", true), attribute.Float64("f", 0.5), attribute.String("s", "t"),
	}
	if got := spans[1].Attributes; !slices.Equal(got, want) {
		t.Errorf("attributes %v, want %v", got, want)
	}
	if st := spans[1].Status; st.Code != codes.Error || st.Description != "broken" || len(spans[1].Events) != 1 {
		t.Errorf("status %+v, events %+v", st, spans[1].Events)
	}
}

// Where nothing is recorded there is nothing to go on with.
func TestNothingRecorded(t *testing.T) {
	for name, tracer := range map[string]remote.Tracer{"none": otel.NewTracer(noop.NewTracerProvider()), "global, not set": otel.NewTracer(nil)} {
		_, s := tracer.Start(t.Context(), "x")
		if parent := s.TraceParent(); parent != "" {
			t.Errorf("%s: traceparent %q", name, parent)
		}
		s.End(nil)
	}
	if ctx := otel.StepContext(t.Context(), &worker.Step{}); ctx != t.Context() {
		t.Error("a step without a span changes the context")
	}
}
