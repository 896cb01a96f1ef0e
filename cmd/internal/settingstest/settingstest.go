// Package settingstest compares the flags of a command line with the tables of
// the operations guide.
package settingstest

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

// setting is what the operations guide has to say of a flag.
type setting struct {
	fallback string
	// commands are those that have it.
	commands []string
}

// settings are the flags of the command line itself.
func settings(t *testing.T, model *kong.Application) map[string]setting {
	t.Helper()
	all := make(map[string]setting)
	var visit func(n *kong.Node, path string) (leaves []string)
	having := make(map[string][]string) // of each flag
	var leavesOf []struct {
		command string
		leaves  []string
	}
	add := func(flags []*kong.Flag, command string) {
		for _, f := range flags {
			if f.Name == "help" {
				continue
			}
			name := "--" + f.Name
			if old, ok := all[name]; ok && old.fallback != f.Default {
				t.Errorf("%s has the default %q in one command and %q in another: the guide has one line for it", name, old.fallback, f.Default)
			}
			all[name] = setting{fallback: f.Default}
			having[name] = append(having[name], command)
		}
	}
	visit = func(n *kong.Node, path string) (leaves []string) {
		for _, child := range n.Children {
			command := strings.TrimSpace(path + " " + child.Name)
			below := visit(child, command)
			if len(below) == 0 {
				below = []string{command}
				add(child.Flags, command)
			} else {
				leavesOf = append(leavesOf, struct {
					command string
					leaves  []string
				}{command, below})
			}
			leaves = append(leaves, below...)
		}
		return leaves
	}
	add(model.Flags, "all")
	visit(model.Node, "")
	for name, s := range all {
		s.commands = having[name]
		// A command whose every subcommand has the flag stands for them.
		for _, group := range leavesOf {
			if !slices.ContainsFunc(group.leaves, func(leaf string) bool { return !slices.Contains(s.commands, leaf) }) {
				at := slices.Index(s.commands, group.leaves[0])
				s.commands[at] = group.command
				s.commands = slices.DeleteFunc(s.commands, func(c string) bool { return slices.Contains(group.leaves, c) })
			}
		}
		all[name] = s
	}
	return all
}

// settingRow is a row of the guide's tables of settings: the flag, its default,
// the commands that have it, and why.
var settingRow = regexp.MustCompile("(?m)^\\| `(--[a-z-]+)` \\| (.*?) \\| (.*?) \\| (.+) \\|$")

// Check fails the test unless the text, a part of the operations guide, has a row
// for every flag of the command line, with its default and the commands that have
// it, and for no other. The command line has at least so many flags.
func Check(t *testing.T, model *kong.Application, text string, flagsLeast int) {
	t.Helper()
	want := settings(t, model)
	if len(want) < flagsLeast {
		t.Fatalf("the command line has %d flags, which is not all", len(want))
	}
	documented := make(map[string]bool)
	for _, row := range settingRow.FindAllStringSubmatch(text, -1) {
		name, fallback, commands, why := row[1], row[2], row[3], row[4]
		s, ok := want[name]
		if !ok {
			t.Errorf("the guide has %s, which no command has", name)
			continue
		}
		if documented[name] {
			t.Errorf("the guide has %s twice", name)
		}
		documented[name] = true
		switch {
		case s.fallback != "" && fallback != "`"+s.fallback+"`":
			t.Errorf("%s: the guide says %s, the default is `%s`", name, fallback, s.fallback)
		case s.fallback == "" && (fallback == "" || strings.Contains(fallback, "`")):
			t.Errorf("%s: the guide says %s, and there is no default", name, fallback)
		}
		if got := strings.Split(commands, ", "); !slices.Equal(got, s.commands) {
			t.Errorf("%s: the guide says it is of %s, and it is of %s", name, commands, strings.Join(s.commands, ", "))
		}
		if strings.Contains(why, "TODO") || len(why) < 10 {
			t.Errorf("%s: the guide does not say why: %q", name, why)
		}
	}
	for name, s := range want {
		if !documented[name] {
			t.Errorf("the guide lacks %s, default %q, of %s", name, s.fallback, strings.Join(s.commands, ", "))
		}
	}
}

// Guide returns the operations guide, in two parts: that of the program sluice,
// and the section of the benchmark.
func Guide(t *testing.T) (sluice, benchmark string) {
	t.Helper()
	text, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	before, section, found := strings.Cut(string(text), "\n### Benchmark\n")
	if !found {
		t.Fatal("the guide has no section of the benchmark")
	}
	section, after, _ := strings.Cut(section, "\n#")
	return before + after, section
}
