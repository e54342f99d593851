// Says of each bundle that is named on standard input, a path a line, whether OPA loads it:
// `loads`, or `refuses` and why. What it calls is what `opa eval --bundle` calls; one process
// for all of them saves the start of thousands.
package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/open-policy-agent/opa/v1/rego"
)

func main() {
	paths := bufio.NewScanner(os.Stdin)
	for paths.Scan() {
		_, err := rego.New(rego.LoadBundle(paths.Text()), rego.Query("data")).PrepareForEval(context.Background())
		if err == nil {
			fmt.Println("loads")
			continue
		}
		fmt.Println("refuses", strings.Join(strings.Fields(err.Error()), " "))
	}
}
