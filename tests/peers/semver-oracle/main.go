// Answers questions about semantic versions with github.com/Masterminds/semver/v3, as Flux does.
//
// Reads lines from standard input: `version` or `range`, a tab, and a text in JSON; what follows
// another tab is ignored, and so are lines that begin with `#`. Prints each line with its answer:
//
//   - for a version its canonical form, or `invalid`. As Flux's ParseVersion, a leading `v` is
//     allowed, and the first `_` stands for `+`, which tags can't contain;
//   - for a range `invalid`, or two fields: the numbers of the valid versions in it, in the order
//     of the input, from 0 and with commas, and the number of the highest; `-` for none.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"strconv"
	"strings"

	"github.com/Masterminds/semver/v3"
)

func main() {
	log.SetFlags(0)
	var lines []string
	input := bufio.NewScanner(os.Stdin)
	input.Buffer(nil, 1<<20)
	for input.Scan() {
		lines = append(lines, input.Text())
	}
	if err := input.Err(); err != nil {
		log.Fatal(err)
	}
	var versions []*semver.Version
	each(lines, "version", func(text string) string {
		version, err := parse(text)
		if err != nil {
			return "invalid"
		}
		versions = append(versions, version)
		return version.String()
	})
	each(lines, "range", func(text string) string {
		constraint, err := semver.NewConstraint(text)
		if err != nil {
			return "invalid"
		}
		return answer(constraint, versions)
	})
	output := bufio.NewWriter(os.Stdout)
	for _, line := range lines {
		fmt.Fprintln(output, line)
	}
	if err := output.Flush(); err != nil {
		log.Fatal(err)
	}
}

// each appends the answer to every line of this kind.
func each(lines []string, kind string, answer func(string) string) {
	for i, line := range lines {
		fields := strings.Split(line, "\t")
		if fields[0] != kind {
			continue
		}
		var text string
		if err := json.Unmarshal([]byte(fields[1]), &text); err != nil {
			log.Fatalf("line %d: %v", i+1, err)
		}
		lines[i] = fields[0] + "\t" + fields[1] + "\t" + answer(text)
	}
}

func parse(tag string) (*semver.Version, error) {
	return semver.StrictNewVersion(strings.Replace(strings.TrimPrefix(tag, "v"), "_", "+", 1))
}

func answer(constraint *semver.Constraints, versions []*semver.Version) string {
	var numbers []string
	highest := -1
	for i, version := range versions {
		if !constraint.Check(version) {
			continue
		}
		numbers = append(numbers, strconv.Itoa(i))
		if highest < 0 || version.GreaterThan(versions[highest]) {
			highest = i
		}
	}
	if highest < 0 {
		return "- -"
	}
	return fmt.Sprintf("%s %d", strings.Join(numbers, ","), highest)
}
