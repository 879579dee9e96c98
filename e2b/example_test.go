package e2b_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/osiris-pipelines/remote/e2b"
)

// Making a sandbox, using it, and paying for no more than that.
func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()

	client, err := e2b.NewClient(e2b.Config{}) // takes E2B_API_KEY
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	sandbox, err := client.CreateSandbox(ctx, e2b.CreateOptions{Timeout: 5 * time.Minute})
	if err != nil {
		log.Print(err)
		return
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		if err := sandbox.Kill(ctx); err != nil {
			log.Print(err)
		}
	}()

	result, err := sandbox.ExecuteCommand(ctx, e2b.Command{Path: "uname", Args: []string{"-a"}})
	if err != nil {
		log.Print(err)
		return
	}
	fmt.Printf("%s", result.Stdout)
}

// What went wrong decides on what to do about it.
func ExampleClient_CreateSandbox() {
	client, err := e2b.NewClient(e2b.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	sandbox, err := client.CreateSandbox(context.Background(), e2b.CreateOptions{
		Template: "my-template",
		Metadata: map[string]string{"owner": "reports"},
	})
	var quota *e2b.QuotaExceededError
	switch {
	case err == nil:
		fmt.Println("made", sandbox.ID())
	case errors.As(err, &quota):
		fmt.Println("too many sandboxes at once")
	case errors.Is(err, e2b.ErrTemplate):
		fmt.Println("build the template first:", err)
	case errors.Is(err, e2b.ErrTimeout):
		fmt.Println("try later:", err)
	default:
		log.Print(err)
	}
}

// Clearing up after programs that ended too early.
func ExampleClient_List() {
	ctx := context.Background()
	client, err := e2b.NewClient(e2b.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	for info, err := range client.List(ctx, e2b.ListOptions{Metadata: map[string]string{"owner": "reports"}}) {
		if err != nil {
			log.Print(err)
			return
		}
		if time.Since(info.StartedAt) > time.Hour {
			fmt.Println("kill", info.ID, client.Kill(ctx, info.ID))
		}
	}
}

// A sandbox outlives the program that made it.
func ExampleClient_Connect() {
	ctx := context.Background()
	client, err := e2b.NewClient(e2b.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	sandbox, err := client.Connect(ctx, "i1a2b3c4d5e6f7g8h9i0j", 10*time.Minute)
	if errors.Is(err, e2b.ErrSandboxGone) {
		fmt.Println("it was killed, or its time is over")
		return
	}
	if err != nil {
		log.Print(err)
		return
	}
	info, err := sandbox.Info(ctx)
	if err != nil {
		log.Print(err)
		return
	}
	fmt.Println("runs until", info.EndAt)
}
