package mock_test

import (
	"fmt"
	"log"
	"net/http"
	"strings"

	"github.com/osiris-pipelines/remote/mock"
)

// A server takes the place of E2B. Here the answer to the first request is
// lost on its way, so that the sandbox is there though nobody knows it.
func ExampleServer() {
	server, err := mock.NewServer(mock.WithFault(func(r mock.HTTPRequest) *mock.HTTPFault {
		if r.Seq == 1 {
			return &mock.HTTPFault{LoseAnswer: true}
		}
		return nil
	}))
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()

	for range 2 {
		body := strings.NewReader(`{"templateID": "base", "timeout": 60}`)
		req, err := http.NewRequest("POST", server.URL()+"/sandboxes", body)
		if err != nil {
			log.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("X-API-Key", server.APIKey())
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			fmt.Println("no answer")
			continue
		}
		res.Body.Close()
		fmt.Println(res.Status)
	}
	fmt.Println("alive:", len(server.Alive()))
	// Output:
	// no answer
	// 201 Created
	// alive: 2
}
