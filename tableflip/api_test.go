package tableflip_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/crossfade-go/crossfade/tableflip"
)

// The list below gives ErrNotSupported, whose declaration has no type, this one.
var _ error = tableflip.ErrNotSupported

// testdata/api.txt lists the exported API of the original at its commit 64983fb,
// without the names of parameters. Neither less nor more may be exported here.
func TestAPIIsThatOfTheOriginal(t *testing.T) {
	listed, err := os.ReadFile(filepath.Join("testdata", "api.txt"))
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Split(strings.TrimSpace(string(listed)), "\n")
	got := exportedAPI(t)
	for _, line := range want {
		if !slices.Contains(got, line) {
			t.Errorf("missing: %s", line)
		}
	}
	for _, line := range got {
		if !slices.Contains(want, line) {
			t.Errorf("not in the original: %s", line)
		}
	}
}

// exportedAPI describes what the package exports on any system, a line each.
func exportedAPI(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	var api []string
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range file.Decls {
			switch d := decl.(type) {
			case *ast.FuncDecl:
				api = append(api, describeFunc(d)...)
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					api = append(api, describeSpec(d.Tok, spec)...)
				}
			}
		}
	}
	return api
}

func describeFunc(d *ast.FuncDecl) []string {
	signature := d.Name.Name + strings.TrimPrefix(typeText(d.Type), "func")
	switch {
	case !d.Name.IsExported():
		return nil
	case d.Recv == nil:
		return []string{"func " + signature}
	}
	receiver := typeText(d.Recv.List[0].Type)
	if !ast.IsExported(strings.TrimPrefix(receiver, "*")) {
		return nil
	}
	return []string{fmt.Sprintf("method (%s) %s", receiver, signature)}
}

func describeSpec(tok token.Token, spec ast.Spec) []string {
	switch s := spec.(type) {
	case *ast.TypeSpec:
		if s.Name.IsExported() {
			return []string{"type " + s.Name.Name + " " + typeText(s.Type)}
		}
	case *ast.ValueSpec:
		var lines []string
		for i, name := range s.Names {
			switch {
			case !name.IsExported():
			case tok == token.CONST:
				lines = append(lines, fmt.Sprintf("const %s %s = %s", name, typeText(s.Type), types.ExprString(s.Values[i])))
			default:
				lines = append(lines, "var "+name.Name+" error")
			}
		}
		return lines
	}
	return nil
}

// typeText prints a type without the names of parameters and without what is
// not exported.
func typeText(expr ast.Expr) string {
	switch e := expr.(type) {
	case *ast.FuncType:
		results := fieldTexts(e.Results, false)
		text := "func(" + strings.Join(fieldTexts(e.Params, false), ", ") + ")"
		switch len(results) {
		case 0:
			return text
		case 1:
			return text + " " + results[0]
		default:
			return text + " (" + strings.Join(results, ", ") + ")"
		}
	case *ast.StructType:
		return members("struct", fieldTexts(e.Fields, true))
	case *ast.InterfaceType:
		return members("interface", fieldTexts(e.Methods, true))
	case nil:
		return ""
	default:
		return types.ExprString(e)
	}
}

func members(kind string, list []string) string {
	if len(list) == 0 {
		return kind + " {}"
	}
	return kind + " { " + strings.Join(list, "; ") + " }"
}

func fieldTexts(list *ast.FieldList, named bool) []string {
	if list == nil {
		return nil
	}
	var texts []string
	for _, field := range list.List {
		text := typeText(field.Type)
		if len(field.Names) == 0 {
			texts = append(texts, text)
		}
		for _, name := range field.Names {
			switch {
			case !named:
				texts = append(texts, text)
			case name.IsExported():
				texts = append(texts, name.Name+" "+text)
			}
		}
	}
	return texts
}
