// Package otel traces runs with OpenTelemetry. It is a Go module of its own, so
// that programs without it need nothing of OpenTelemetry.
//
//	ec := remote.NewExecutionContext("run_logs")
//	ec.Tracer = otel.NewTracer(nil) // of the global provider
//	ctx, span := tracer.Start(ctx, "nightly")
//	defer span.End()
//	remote.Run(ctx, adapter, manifest, ec)
//
// The spans of the run are below the one in its context, as [remote.Tracer]
// says. A driver goes on with the trace by [StepContext]; spans that it makes
// leave its worker by an exporter of its own, which the sandbox must let out
// ([remote.Config].AllowHosts).
package otel

import (
	"context"
	"log/slog"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/worker"
)

// Name is the instrumentation scope of the spans.
const Name = "github.com/osiris-pipelines/remote"

// NewTracer returns a tracer for [remote.ExecutionContext]. Nil means the
// global provider, as it is when a span starts.
func NewTracer(p trace.TracerProvider) remote.Tracer { return tracer{p} }

type tracer struct{ provider trace.TracerProvider }

func (t tracer) Start(ctx context.Context, name string, attrs ...slog.Attr) (context.Context, remote.Span) {
	p := t.provider
	if p == nil {
		p = otel.GetTracerProvider()
	}
	ctx, s := p.Tracer(Name).Start(ctx, name, trace.WithAttributes(attributes(attrs)...))
	return ctx, span{ctx, s}
}

type span struct {
	ctx context.Context
	trace.Span
}

// TraceParent is empty where the provider records nothing.
func (s span) TraceParent() string {
	carrier := make(propagation.MapCarrier)
	propagation.TraceContext{}.Inject(s.ctx, carrier)
	return carrier["traceparent"]
}

func (s span) SetAttributes(attrs ...slog.Attr) { s.Span.SetAttributes(attributes(attrs)...) }

func (s span) End(err error) {
	if err != nil {
		s.Span.RecordError(err)
		s.Span.SetStatus(codes.Error, err.Error())
	}
	s.Span.End()
}

func attributes(attrs []slog.Attr) []attribute.KeyValue {
	out := make([]attribute.KeyValue, 0, len(attrs))
	for _, a := range attrs {
		switch v := a.Value.Resolve(); v.Kind() {
		case slog.KindBool:
			out = append(out, attribute.Bool(a.Key, v.Bool()))
		case slog.KindInt64:
			out = append(out, attribute.Int64(a.Key, v.Int64()))
		case slog.KindFloat64:
			out = append(out, attribute.Float64(a.Key, v.Float64()))
		default:
			out = append(out, attribute.String(a.Key, v.String()))
		}
	}
	return out
}

// StepContext returns a context of a driver below the span that its step is on
// the host: spans that start with it are that one's children. Without one it
// returns ctx.
func StepContext(ctx context.Context, step *worker.Step) context.Context {
	return propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{"traceparent": step.TraceParent})
}
