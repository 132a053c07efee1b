// SPDX-License-Identifier: Apache-2.0

package importer

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Limits of an XML document. encoding/xml expands only the five entities that every document has.
const (
	maxXMLDepth    = 64
	maxXMLElements = 250_000
)

// element is an element of an XML document.
type element struct {
	name     string
	path     string // such as /pfsense/nat/rule[3]
	line     int
	text     string
	children []*element
}

// readXML reads a document.
func readXML(name string, data []byte) (*element, error) {
	decoder := xml.NewDecoder(bytes.NewReader(data))
	var stack []*element
	var root *element
	elements := 0
	fail := func(format string, args ...any) error {
		return problemAt(name, data, int(decoder.InputOffset()), format, args...)
	}
	for {
		at := int(decoder.InputOffset())
		token, err := decoder.RawToken()
		switch {
		case errors.Is(err, io.EOF) && (len(stack) > 0 || root == nil):
			return nil, problemAt(name, data, len(data), "the document ends too early: it is cut off")
		case errors.Is(err, io.EOF):
			return root, nil
		case err != nil:
			var syntax *xml.SyntaxError
			if errors.As(err, &syntax) {
				return nil, fail("%s", syntax.Msg)
			}
			return nil, fail("%s", err)
		}
		switch token := token.(type) {
		case xml.Directive:
			return nil, problemAt(name, data, at, "a document type has no place in config.xml")
		case xml.StartElement:
			if elements++; elements > maxXMLElements || len(stack) == maxXMLDepth {
				return nil, problemAt(name, data, at, "the document has more than %d elements, or more than %d inside each other", maxXMLElements, maxXMLDepth)
			}
			if root != nil && len(stack) == 0 {
				return nil, problemAt(name, data, at, "a second document begins here")
			}
			line, _ := decoder.InputPos()
			e := &element{name: token.Name.Local, line: line}
			if root == nil {
				root = e
				e.path = "/" + e.name
			} else {
				parent := stack[len(stack)-1]
				parent.children = append(parent.children, e)
			}
			stack = append(stack, e)
		case xml.EndElement:
			if len(stack) == 0 || stack[len(stack)-1].name != token.Name.Local {
				return nil, problemAt(name, data, at, "</%s> closes an element that is not open", token.Name.Local)
			}
			stack = stack[:len(stack)-1]
		case xml.CharData:
			text := strings.TrimSpace(string(token))
			if len(stack) == 0 {
				if text != "" {
					return nil, problemAt(name, data, at, "text outside of the document")
				}
				continue
			}
			stack[len(stack)-1].text += text
		}
	}
}

// find returns the element at a path of names below e, nil if there is none.
func (e *element) find(names ...string) *element {
	for _, name := range names {
		if e == nil {
			return nil
		}
		var next *element
		for _, child := range e.children {
			if child.name == name {
				next = child
				break
			}
		}
		e = next
	}
	return e
}

// all returns the children with a name, with their paths.
func (e *element) all(name, path string) (list []*element) {
	if e == nil {
		return nil
	}
	for _, child := range e.children {
		if child.name == name {
			child.path = fmt.Sprintf("%s/%s[%d]", path, name, len(list)+1)
			list = append(list, child)
		}
	}
	return list
}

// get returns the text of an element below e, "" if there is none.
func (e *element) get(names ...string) string {
	if e = e.find(names...); e == nil {
		return ""
	}
	return e.text
}

// has reports whether e has an element that means yes: <disabled/>, <disabled>1</disabled>.
func (e *element) has(name string) bool {
	child := e.find(name)
	return child != nil && child.text != "0" && child.text != "no"
}
