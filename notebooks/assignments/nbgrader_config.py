"""nbgrader's settings for this course folder; `nbgrader generate_assignment NAME` reads them from here."""

c = get_config()                                             # noqa: F821 (given by nbgrader)

c.CourseDirectory.course_id = "mavlite"
# The line after each region says what to implement, so the stub itself raises nothing.
c.ClearSolutions.code_stub = {"python": "# YOUR CODE HERE"}
c.ClearSolutions.text_stub = "YOUR ANSWER HERE"
c.ExecutePreprocessor.timeout = 60
