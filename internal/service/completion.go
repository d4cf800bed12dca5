package service

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// common is the part of the command line that both programs share.
type common struct {
	Version    kong.VersionFlag `noenv:"" help:"Print version, commit, its date and the platform, and exit."`
	Completion completionFlags  `cmd:"" help:"Print a script that completes commands and flags in a shell."`
}

type completionFlags struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"bash, zsh or fish."`
}

// Help implements kong.HelpProvider.
func (completionFlags) Help() string {
	return `The script contains no settings:

  bash   NAME completion bash > /etc/bash_completion.d/NAME
  zsh    NAME completion zsh  > "${fpath[1]}/_NAME"
  fish   NAME completion fish > ~/.config/fish/completions/NAME.fish`
}

// completion writes scripts for a program's flags and commands.
type completion struct {
	name  string
	app   *kong.Application
	scope scope
	nodes []*kong.Node
}

// writeCompletion writes a shell's script. The libraries for kong (kongplete, kong-completion) would run the
// program, with the secrets in its environment, at each key press, and link code under the MPL.
func writeCompletion(out io.Writer, app *kong.Application, scope scope, shell string) error {
	c := completion{name: app.Name, app: app, scope: scope, nodes: commands(app)}
	var script string
	switch shell {
	case "bash":
		script = c.bash()
	case "zsh":
		script = c.zsh()
	default:
		script = c.fish()
	}
	_, err := io.WriteString(out, script)
	return err
}

// commands returns the visible commands.
func commands(app *kong.Application) []*kong.Node {
	return slices.DeleteFunc(slices.Clone(app.Children), func(n *kong.Node) bool { return n.Hidden })
}

func commandNames(app *kong.Application) (names []string) {
	for _, n := range commands(app) {
		names = append(names, n.Name)
	}
	return names
}

func flagNames(flags []*kong.Flag) (names []string) {
	for _, f := range flags {
		names = append(names, "--"+f.Name)
	}
	return names
}

// choices returns the values of an enum.
func choices(v *kong.Value) []string {
	return slices.DeleteFunc(v.EnumSlice(), func(s string) bool { return s == "" })
}

// function returns the name of the shell function.
func (c *completion) function() string { return "_" + strings.ReplaceAll(c.name, "-", "_") }

// values formats one line per flag with choices: its name and its choices.
func (c *completion) values(format string) string {
	flags := c.scope.flags(c.app, nil)
	for _, n := range c.nodes {
		flags = append(flags, n.Flags...)
	}
	var lines strings.Builder
	for _, f := range flags {
		if list := choices(f.Value); len(list) > 0 {
			_, _ = fmt.Fprintf(&lines, format, f.Name, strings.Join(list, " "))
		}
	}
	return lines.String()
}

func (c *completion) bash() string {
	var own strings.Builder
	for _, n := range c.nodes {
		words := flagNames(c.scope.flags(c.app, n))
		for _, p := range n.Positional {
			words = append(words, choices(p)...)
		}
		_, _ = fmt.Fprintf(&own, "    %s) words='%s' ;;\n", n.Name, strings.Join(words, " "))
	}
	return fmt.Sprintf(`# bash completion for %[1]s
%[2]s() {
  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command= words= i
  COMPREPLY=()
  case $prev in
%[3]s  esac
  for ((i = 1; i < COMP_CWORD; i++)); do
    case " %[4]s " in *" ${COMP_WORDS[i]} "*) command=${COMP_WORDS[i]}; break ;; esac
  done
  case $command in
    '') words='%[4]s %[6]s' ;;
%[5]s  esac
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
}
complete -o default -F %[2]s %[1]s
`, c.name, c.function(), c.values("    --%s) COMPREPLY=($(compgen -W '%s' -- \"$cur\")); return ;;\n"),
		strings.Join(commandNames(c.app), " "), own.String(),
		strings.Join(flagNames(c.scope.flags(c.app, nil)), " "))
}

// shellWord quotes a string as one shell word on one line.
func shellWord(s string) string {
	return "'" + strings.ReplaceAll(strings.Join(strings.Fields(s), " "), "'", `'\''`) + "'"
}

// described returns a word with its help for zsh's _describe.
func described(word, help string) string {
	return shellWord(word + ":" + strings.ReplaceAll(help, ":", `\:`))
}

func describedFlags(flags []*kong.Flag) string {
	var list []string
	for _, f := range flags {
		list = append(list, described("--"+f.Name, f.Help))
	}
	return strings.Join(list, " ")
}

func (c *completion) zsh() string {
	var commands, own strings.Builder
	for _, n := range c.nodes {
		_, _ = fmt.Fprintf(&commands, " %s", described(n.Name, n.Help))
		_, _ = fmt.Fprintf(&own, "    %s) flags=(%s)", n.Name, describedFlags(c.scope.flags(c.app, n)))
		for _, p := range n.Positional {
			if list := choices(p); len(list) > 0 {
				_, _ = fmt.Fprintf(&own, "; compadd -- %s", strings.Join(list, " "))
			}
		}
		own.WriteString(" ;;\n")
	}
	return fmt.Sprintf(`#compdef %[1]s
%[2]s() {
  local -a commands flags
  local command= i
  commands=(%[3]s)
  flags=(%[4]s)
  case $words[CURRENT-1] in
%[5]s  esac
  for ((i = 2; i < CURRENT; i++)); do
    if (( ${commands[(I)$words[i]:*]} )); then command=$words[i]; break; fi
  done
  case $command in
    '') _describe -t commands command commands ;;
%[6]s  esac
  _describe -o -t flags flag flags
  [[ -n $command ]] && _files
}
if [[ $funcstack[1] == %[2]s ]]; then %[2]s "$@"; else compdef %[2]s %[1]s; fi
`, c.name, c.function(), commands.String(), describedFlags(c.scope.flags(c.app, nil)),
		c.values("    --%s) compadd -- %s; return ;;\n"), own.String())
}

func (c *completion) fish() string {
	var script strings.Builder
	_, _ = fmt.Fprintf(&script, "# fish completion for %s\n", c.name)
	flags := func(list []*kong.Flag, condition string) {
		for _, f := range list {
			_, _ = fmt.Fprintf(&script, "complete -c %s%s -l %s -d %s", c.name, condition, f.Name, shellWord(f.Help))
			if few := choices(f.Value); len(few) > 0 {
				_, _ = fmt.Fprintf(&script, " -x -a %s", shellWord(strings.Join(few, " ")))
			} else if !f.IsBool() {
				script.WriteString(" -r")
			}
			script.WriteByte('\n')
		}
	}
	flags(c.scope.flags(c.app, nil), " -n __fish_use_subcommand")
	for _, n := range c.nodes {
		_, _ = fmt.Fprintf(&script, "complete -c %s -n __fish_use_subcommand -f -a %s -d %s\n",
			c.name, n.Name, shellWord(n.Help))
		condition := " -n '__fish_seen_subcommand_from " + n.Name + "'"
		flags(c.scope.flags(c.app, n), condition)
		for _, p := range n.Positional {
			if few := choices(p); len(few) > 0 {
				_, _ = fmt.Fprintf(&script, "complete -c %s%s -f -a %s\n",
					c.name, condition, shellWord(strings.Join(few, " ")))
			}
		}
	}
	return script.String()
}
