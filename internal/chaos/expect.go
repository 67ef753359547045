//go:build linux

package main

import (
	_ "embed"
	"fmt"
	"maps"
	"slices"
	"strings"
)

//go:embed expect.txt
var expectations string

// outcome is what becomes of a handoff; expect.txt says what each letter means.
type outcome string

// The outcomes.
const (
	outcomePredecessor outcome = "P"
	outcomeSuccessor   outcome = "S"
	outcomeHeir        outcome = "H"
	outcomeFresh       outcome = "F"
	outcomeUnsettled   outcome = "s"
	outcomeResumable   outcome = "r"
	outcomeRolledBack  outcome = "R"
	outcomeYielding    outcome = "n"
	outcomeReturning   outcome = "m"
	outcomeNobody      outcome = "-"

	// Of a scenario in which a client moves.
	outcomeMoved      outcome = "S>"
	outcomeKept       outcome = "S<"
	outcomeLost       outcome = "S!"
	outcomeNobodyKept outcome = "-<"
	outcomeNobodyLost outcome = "-!"
)

var outcomes = []outcome{
	outcomePredecessor, outcomeSuccessor, outcomeHeir, outcomeFresh,
	outcomeUnsettled, outcomeResumable, outcomeRolledBack, outcomeYielding,
	outcomeReturning, outcomeNobody,
	outcomeMoved, outcomeKept, outcomeLost, outcomeNobodyKept, outcomeNobodyLost,
}

// nobody reports whether the service is nobody's, so that clients are turned away.
func (o outcome) nobody() bool {
	return o == outcomeFresh || o == outcomeNobody || o == outcomeNobodyKept || o == outcomeNobodyLost
}

// fault is what goes wrong.
type fault string

// The faults.
const (
	faultKill      fault = "kill"
	faultStop      fault = "stop"
	faultClose     fault = "close"
	faultGarbage   fault = "garbage"
	faultRepeated  fault = "repeated"
	faultMisplaced fault = "misplaced"
	faultDelayed   fault = "delayed"
	faultNone      fault = "none" // in a soak only
)

// moment is when it goes wrong, seen from the message.
type moment string

// The moments.
const (
	before moment = "before"
	after  moment = "after"
	onWire moment = "wire"
	at     moment = "at"
)

// column is a fault and its victim, if it has one.
type column struct {
	fault  fault
	victim side
}

var (
	processColumns = []column{
		{faultKill, successor},
		{faultKill, predecessor},
		{faultStop, successor},
		{faultStop, predecessor},
		{faultClose, successor},
		{faultClose, predecessor},
	}
	directColumns = processColumns[:2]
	wireColumns   = []column{{fault: faultGarbage}, {fault: faultRepeated}, {fault: faultMisplaced}, {fault: faultDelayed}}
)

// columns are the faults that a row of the table has.
func (m moment) columns() []column {
	switch m {
	case before, after:
		return processColumns
	case onWire:
		return wireColumns
	case at:
		return directColumns
	default:
		return nil
	}
}

// String is how a column is called in the table and in the name of a cell.
func (c column) String() string {
	switch c.fault {
	case faultKill, faultStop, faultClose:
		return string(c.fault) + "-" + map[side]string{predecessor: "P", successor: "S"}[c.victim]
	default:
		return string(c.fault)
	}
}

// cell is one case of the matrix and what is expected of it.
type cell struct {
	scenario string
	message  string
	moment   moment
	column
	want  outcome
	rule  string
	until string // for faultStop: what the other side reports before the victim is woken
}

// String names the cell, for -run.
func (c cell) String() string {
	return fmt.Sprintf("%s/%s/%s/%v", c.scenario, c.message, c.moment, c.column)
}

// untils are what a stopped process may be left waiting for.
var untils = []string{"failed", "turned", "overdue", "standing", "asked", "exit", "settled"}

// parseTable reads the table of expectations. rules are the words that each rule
// is known by in docs/protocol.md.
func parseTable(text string) (cells []cell, rules map[string]string, err error) {
	rules = make(map[string]string)
	scenario, number := "", 0
	for line := range strings.Lines(text) {
		number++
		line = strings.TrimSpace(line)
		fields := strings.Fields(line)
		var row []cell
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
		case fields[0] == "rule" && len(fields) > 2:
			rules[fields[1]] = strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(strings.TrimPrefix(line, "rule")), fields[1]))
		case fields[0] == "scenario" && len(fields) == 2:
			scenario = fields[1]
		default:
			row, err = parseRow(scenario, fields)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("line %d: %w", number, err)
		}
		cells = append(cells, row...)
	}
	return cells, rules, checkTable(cells, rules)
}

func parseRow(scenario string, fields []string) ([]cell, error) {
	if len(fields) < 3 {
		return nil, fmt.Errorf("a row has a message, a moment and cells, not %q", fields)
	}
	when := moment(fields[1])
	columns := when.columns()
	if columns == nil {
		return nil, fmt.Errorf("%q is no moment", when)
	}
	if len(fields)-2 != len(columns) {
		return nil, fmt.Errorf("%d cells instead of %d", len(fields)-2, len(columns))
	}
	row := make([]cell, 0, len(columns))
	for i, field := range fields[2:] {
		want, rest, _ := strings.Cut(field, "/")
		rule, until, _ := strings.Cut(rest, "/")
		row = append(row, cell{
			scenario: scenario, message: fields[0], moment: when, column: columns[i],
			want: outcome(want), rule: rule, until: until,
		})
	}
	return row, nil
}

// checkTable finds what would make a cell mean nothing.
func checkTable(cells []cell, rules map[string]string) error {
	used := make(map[string]bool)
	seen := make(map[string]bool)
	for _, c := range cells {
		used[c.rule] = true
		switch {
		case c.scenario == "":
			return fmt.Errorf("%v belongs to no scenario", c)
		case seen[c.String()]:
			return fmt.Errorf("%v is there twice", c)
		case !slices.Contains(outcomes, c.want):
			return fmt.Errorf("%v: %q is no outcome", c, c.want)
		case rules[c.rule] == "":
			return fmt.Errorf("%v: there is no rule %q", c, c.rule)
		case (c.fault == faultStop) != slices.Contains(untils, c.until):
			return fmt.Errorf("%v: woken at %q", c, c.until)
		}
		seen[c.String()] = true
	}
	for _, rule := range slices.Sorted(maps.Keys(rules)) {
		if !used[rule] {
			return fmt.Errorf("no cell follows from the rule %s", rule)
		}
	}
	return nil
}
