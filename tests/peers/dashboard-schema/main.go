// Checks a dashboard by the schema of Grafana: every field is known, has the right type, and is not
// missing; also those of the panels, transformations and queries.
//
// Takes a file, and prints the number of its panels and queries.
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"os"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/cog/plugins"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) != 2 {
		log.Fatal("usage: dashboard-schema FILE")
	}
	text, err := os.ReadFile(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	plugins.RegisterDefaultPlugins()
	// Without errors it returns an empty list of them, which is not nil as an error, and no panels.
	var strict, board dashboard.Dashboard
	err = strict.UnmarshalJSONStrict(text)
	if list, is := err.(cog.BuildErrors); err != nil && (!is || len(list) > 0) {
		log.Fatal(err)
	}
	if err := json.Unmarshal(text, &board); err != nil {
		log.Fatal(err)
	}
	if err := board.Validate(); err != nil {
		log.Fatal(err)
	}
	panels, queries := 0, 0
	for _, entry := range board.Panels {
		if entry.Panel != nil {
			panels++
			queries += len(entry.Panel.Targets)
		}
	}
	fmt.Printf("%d panels, %d queries\n", panels, queries)
}
