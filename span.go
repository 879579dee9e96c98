package remote

import (
	"context"
	"log/slog"

	"github.com/osiris-pipelines/remote/rpc"
)

// Tracer makes spans of a run, for a system that traces what a program does.
// Package otel of this repository has one for OpenTelemetry, which is a module
// of its own; this package depends on none.
//
// Execute and Collect make a span each, below the one in their context:
// "osiris.execute" and "osiris.collect". Below these are the phases, as
// "osiris.phase.create" and "osiris.phase.steps", and below osiris.execute a span
// "osiris.step" for each step, whose driver may go on with it: its
// TraceParent is [worker.Step].TraceParent.
//
// Methods are called concurrently, and must not block.
type Tracer interface {
	// Start starts a span below the one in ctx, and returns a context that has
	// it.
	Start(ctx context.Context, name string, attrs ...slog.Attr) (context.Context, Span)
}

// Span is something that is going on.
type Span interface {
	// TraceParent names the span as the W3C's Trace Context does, as
	// "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01". Empty means that
	// it has no name.
	TraceParent() string

	// SetAttributes adds to what Start was told.
	SetAttributes(attrs ...slog.Attr)

	// End ends the span. An error is why what it is about has failed; its text
	// has no secret values of the run.
	End(err error)
}

// startSpan starts a span by the context's tracer. Without one nothing happens.
func (ec *ExecutionContext) startSpan(ctx context.Context, name string, attrs ...slog.Attr) (context.Context, Span) {
	if ec.Tracer == nil {
		return ctx, noSpan{}
	}
	return ec.Tracer.Start(ctx, name, attrs...)
}

type noSpan struct{}

func (noSpan) TraceParent() string        { return "" }
func (noSpan) SetAttributes(...slog.Attr) {}
func (noSpan) End(error)                  {}

// traceStep starts the span of a step, and has the worker told of it.
func (ec *ExecutionContext) traceStep(ctx context.Context, s *session, step Step, req *rpc.ExecuteStep) Span {
	_, span := ec.startSpan(ctx, "osiris.step", slog.String("osiris.step_id", step.ID), slog.String("osiris.driver", step.DriverName()))
	switch parent := span.TraceParent(); {
	case parent == "":
	case rpc.ValidTraceParent(parent):
		req.TraceParent = parent
	default:
		s.logf(slog.LevelWarn, "the tracer's traceparent for step %q is not of the form that the W3C has, and is not sent", step.ID)
	}
	return span
}

// attributes is a receipt as a span has it.
func (r *Receipt) attributes() []slog.Attr {
	if r == nil {
		return nil
	}
	attrs := []slog.Attr{
		slog.Int64("osiris.bytes_sent", r.BytesSent), slog.Int64("osiris.bytes_received", r.BytesReceived),
		slog.Float64("osiris.vcpu_seconds", r.VCPUSeconds), slog.Float64("osiris.gib_seconds", r.GiBSeconds),
		slog.Float64("osiris.cost_usd", r.CostUSD),
	}
	if r.Overhead != nil {
		attrs = append(attrs, slog.Float64("osiris.overhead_ratio", r.Overhead.Ratio))
	}
	return attrs
}
