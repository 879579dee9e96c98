package otel_test

import (
	"context"
	"fmt"
	"os"

	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/otel"
	"github.com/osiris-pipelines/remote/worker"
)

// A program passes its provider on, and gets the steps as spans.
func ExampleNewTracer() {
	spans := tracetest.NewInMemoryExporter() // or one that sends them somewhere
	provider := trace.NewTracerProvider(trace.WithSyncer(spans))
	drivers := worker.NewRegistry()
	drivers.Register("hello", worker.Extract, func() worker.Driver {
		return driverFunc(func(context.Context, *worker.Step) (*worker.Result, error) { return nil, nil })
	})
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	adapter, err := remote.NewLocalAdapter(remote.Config{Drivers: drivers, InProcess: true})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer adapter.Close()
	ec := remote.NewExecutionContext(dir)
	ec.Tracer = otel.NewTracer(provider)
	ctx, span := provider.Tracer("program").Start(context.Background(), "nightly")
	_, _, err = remote.Run(ctx, adapter, &remote.Manifest{Name: "m", Steps: []remote.Step{{ID: "greet", Driver: "hello"}}}, ec)
	span.End()
	for _, s := range spans.GetSpans() {
		if s.Name == "osiris.step" {
			fmt.Println(s.Attributes[0].Value.AsString(), "by", s.Attributes[1].Value.AsString(), err)
		}
	}
	// Output: greet by hello <nil>
}

// A driver's spans are below that of its step.
func ExampleStepContext() {
	provider := trace.NewTracerProvider() // of the worker
	driver := driverFunc(func(ctx context.Context, step *worker.Step) (*worker.Result, error) {
		_, span := provider.Tracer("driver").Start(otel.StepContext(ctx, step), "query")
		defer span.End()
		fmt.Println(span.SpanContext().TraceID())
		return nil, nil
	})
	_, err := driver.Run(context.Background(), &worker.Step{TraceParent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"})
	fmt.Println(err)
	// Output:
	// 4bf92f3577b34da6a3ce929d0e0e4736
	// <nil>
}
