package service

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// scope knows which settings a command uses. Flags of a command, --help and --version are no settings: they
// are always in scope.
type scope struct{ settings func(command string) []string }

func newScope(cli any) scope {
	if scoped, ok := cli.(Scoped); ok {
		return scope{scoped.Settings}
	}
	return scope{func(string) []string { return nil }}
}

// uses reports whether a command uses a flag. command "" is the whole program.
func (s scope) uses(app *kong.Application, command string, flag *kong.Flag) bool {
	setting := !flag.Tag.Has("noenv") && flag.Name != "help" && slices.Contains(app.Flags, flag)
	names := s.settings(command)
	return !setting || command == "" || names == nil || slices.ContainsFunc(names, func(pattern string) bool {
		matches, _ := path.Match(pattern, flag.Name) // an error would be a malformed pattern
		return matches
	})
}

// flags returns the visible flags that a command uses, its own first.
func (s scope) flags(app *kong.Application, node *kong.Node) (list []*kong.Flag) {
	command := ""
	if node != nil {
		list, command = append(list, node.Flags...), node.Name
	}
	for _, flag := range app.Flags {
		if s.uses(app, command, flag) {
			list = append(list, flag)
		}
	}
	return slices.DeleteFunc(list, func(f *kong.Flag) bool { return f.Hidden })
}

// help prints the help of the selected command without the settings that it does not use.
func (s scope) help(options kong.HelpOptions, ctx *kong.Context) error {
	for _, flag := range ctx.Model.Flags {
		flag.Hidden = flag.Hidden || !s.uses(ctx.Model, commandOf(ctx), flag)
	}
	return kong.DefaultHelpPrinter(options, ctx)
}

// commandOf returns the selected command's name; "": none.
func commandOf(ctx *kong.Context) string {
	if node := ctx.Selected(); node != nil {
		return node.Name
	}
	return ""
}

// Only words of these forms are repeated: another one may be a customer's e-mail address or a secret.
var (
	commandForm = regexp.MustCompile(`^[a-z-]{1,20}$`)
	flagForm    = regexp.MustCompile(`^--?[a-zA-Z][a-zA-Z-]{0,40}$`)
)

// unknownWord rewrites kong's message about an unknown command, flag or argument, with the nearest one that
// exists; "": the message is about something else.
func (s scope) unknownWord(message string, ctx *kong.Context) string {
	node := ctx.Selected()
	if _, word, ok := strings.Cut(message, "unknown flag "); ok {
		word, _, _ = strings.Cut(word, ", did you mean ")
		return unknown("flag", word, flagForm, flagNames(s.flags(ctx.Model, node)))
	}
	_, word, ok := strings.Cut(message, "unexpected argument ")
	switch word, _, _ = strings.Cut(word, ", did you mean "); {
	case !ok:
		return ""
	case node != nil:
		return "unexpected argument"
	}
	return unknown("command", word, commandForm, commandNames(ctx.Model))
}

func unknown(kind, word string, form *regexp.Regexp, known []string) string {
	if !form.MatchString(word) {
		return "unknown " + kind
	}
	if near := nearest(word, known); near != "" {
		return fmt.Sprintf("unknown %s %q; did you mean %q?", kind, word, near)
	}
	return fmt.Sprintf("unknown %s %q", kind, word)
}

// nearest returns the known word that starts with word, or else the one with the fewest typing errors; "":
// each has more errors than half the word's letters.
func nearest(word string, known []string) (near string) {
	letters := strings.Trim(word, "-")
	best := len(letters)/2 + 1
	for _, k := range known {
		if letters != "" && strings.HasPrefix(k, word) {
			return k
		}
		if d := distance(word, k); d < best {
			near, best = k, d
		}
	}
	return near
}

// distance counts the letters to insert, delete, replace or swap with their neighbour.
func distance(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			replaced := rows[i-1][j-1]
			if a[i-1] != b[j-1] {
				replaced++
			}
			rows[i][j] = min(replaced, rows[i-1][j]+1, rows[i][j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}
